"""What the settings say of the API's own rules."""

from batchmill.settings import BadSettings, Settings, limits_over
from batchmill.spec.limits import PROFILES, Limits


def limits_of(settings: Settings) -> Limits:
    """Return the limits of the chosen profile, with those that the settings override.

    Raises:
        BadSettings: They do not go together with this profile.
    """
    try:
        return limits_over(PROFILES[settings.limits], {"media_urls": settings.media_urls} | settings.limits_override)
    except ValueError as fault:
        raise BadSettings(str(fault)) from fault


def retention_of(settings: Settings) -> int | None:
    """Return how many seconds files last that name no time of their own; None: for ever."""
    return None if settings.retention is None else int(settings.retention)
