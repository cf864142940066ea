"""What the handlers are handed: the use cases and what answers for them, joined in ``app.py``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airhub.usecases.base import Parts
    from airhub.usecases.files import Files
    from airhub.usecases.images import Images
    from airhub.usecases.inferences import Inferences
    from airhub.usecases.resources import Resources
    from airhub.usecases.templates import Templates
    from airhub.usecases.trains import Trains
    from airhub.usecases.workspaces import Workspaces
    from airhub.web.auth import AirHubAuth
    from airhub.web.events import EventStream


@dataclass
class Services:
    """Everything that a handler may call."""

    auth: AirHubAuth
    parts: Parts
    images: Images
    templates: Templates
    trains: Trains
    inferences: Inferences
    workspaces: Workspaces
    files: Files
    resources: Resources
    events: EventStream
    hub_token: str
    """The service's own token, by which the Hub's process is known to the internal routes."""
    log: logging.Logger
