"""Viewer tokens: a short-lived right to read one run, for browsers, whose EventSource cannot send a header.

Signed with HMAC (HS256), bound to one run, at most ten minutes. The algorithm and the audience are pinned; nothing in a
token is believed before its signature was checked.
"""

from __future__ import annotations

import time
from typing import Any, Final

from relay.core.errors import Unauthenticated
from relay.core.ids import RunKey

MOST_S: Final = 600
_AUDIENCE: Final = "relay.viewer"
_ALGORITHM: Final = "HS256"


class Tokens:
    def __init__(self, secret: str) -> None:
        self._secret = secret

    def mint(self, key: RunKey, *, minted_by: str, ttl_s: int = MOST_S) -> tuple[str, float]:
        """A token for one run, and the unix time at which it expires."""
        import jwt  # noqa: PLC0415  (by a start without tokens it is not needed)

        now = int(time.time())
        expires_at = now + min(ttl_s, MOST_S)
        claims = {
            "aud": _AUDIENCE,
            "upstream": key.upstream,
            "run": key.run_id,
            "by": minted_by,
            "iat": now,
            "exp": expires_at,
        }
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM), float(expires_at)

    def read(self, token: str) -> tuple[RunKey, str, float]:
        """The run, the minter's name and the expiry of a valid token; Unauthenticated otherwise."""
        import jwt  # noqa: PLC0415

        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                # When it was minted is nothing to judge by: another process' clock may be ahead, or ours have been set.
                options={"require": ["exp", "iat", "aud", "run", "upstream"], "verify_iat": False},
            )
            key = RunKey(str(claims["upstream"]), str(claims["run"]))
            return key, str(claims.get("by", "")), float(claims["exp"])
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("the access token has expired", code="auth.token_expired") from error
        except (jwt.InvalidTokenError, ValueError, TypeError) as error:
            raise Unauthenticated("the access token is not valid", code="auth.invalid_token") from error
