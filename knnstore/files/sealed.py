"""JSON with its own checksum."""

import json
from typing import Any

import google_crc32c

CHECKSUM_FIELD = "crc32c"


def encode_json(value: Any) -> bytes:
    """Return canonical JSON: sorted keys, an indent of one space, a line break at the end."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def seal_json(value: dict[str, Any]) -> bytes:
    """Return canonical JSON of ``value`` with a field ``crc32c``, the CRC-32C of the canonical JSON without it."""
    return encode_json(value | {CHECKSUM_FIELD: google_crc32c.value(encode_json(value))})


def unseal_json(data: bytes) -> Any:
    """Return the JSON value in ``data`` without its checksum. Raises ValueError if the checksum doesn't match.

    A value without a checksum is accepted, because people write JSON by hand and old stores have none.
    """
    value = json.loads(data, parse_constant=_refuse_constant)
    if not isinstance(value, dict) or CHECKSUM_FIELD not in value:
        return value
    plain = {name: item for name, item in value.items() if name != CHECKSUM_FIELD}
    if seal_json(plain) != data:
        raise ValueError("its bytes don't match its checksum")
    return plain


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
