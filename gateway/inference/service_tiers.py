"""OpenAI's service tiers: what each means here, and the one that was used, named in the answer."""

from collections.abc import Mapping
from types import MappingProxyType

from tenants.queueing.fair_queue import ServiceTier

_TIERS: Mapping[str, ServiceTier] = MappingProxyType(
    {"priority": ServiceTier.PRIORITY, "fast": ServiceTier.PRIORITY, "flex": ServiceTier.FLEX}
)
_NULL = b'"service_tier":null'
# A quote inside a JSON string is escaped, so these bytes can only be structure, never text of a model.
_OBJECTS = (b'"object":"chat.completion.chunk"', b'"object":"chat.completion"', b'"object":"text_completion"')


def tier_of(requested: str | None) -> ServiceTier:
    """The queue's tier for a request's ``service_tier``; all that is not known here is the default."""
    return _TIERS.get(requested or "", ServiceTier.DEFAULT)


def used_tier(requested: str | None) -> str | None:
    """OpenAI's name of the tier that serves the request; None for a client that named none."""
    return None if requested is None else tier_of(requested).name.lower()


def with_tier(answer: bytes, tier: str | None) -> bytes:
    """A plain answer, or whole events of a stream, with the tier in each object that vLLM has written."""
    if tier is None:
        return answer
    member = b'"service_tier":"%s"' % tier.encode()
    if _NULL in answer:
        return answer.replace(_NULL, member)
    for object_member in _OBJECTS:
        if object_member in answer:
            return answer.replace(object_member, b"%s,%s" % (object_member, member))
    return answer
