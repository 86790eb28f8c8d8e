"""Keys: read from the environment, held in memory alone, blotted out of every text that leaves.

The SDKs' own logs are texts that leave, too: at level DEBUG the HTTP library writes the headers of
responses, where a proxy may repeat a key.
"""

from __future__ import annotations

import base64
import logging
import os
from urllib.parse import quote

from bagpiper_jax.errors import UserError

BLOT = "[key]"


class Secret:
    """A key that neither prints nor pickles; `reveal` is for the endpoint's own client."""

    def __init__(self, value: str):
        self._value = value

    @classmethod
    def from_environment(cls, name: str) -> Secret:
        """The key that an environment variable holds; an empty name stands for no key.

        Raises:
          UserError: the variable is not set, or is empty.
        """
        if not name:
            return cls("")
        value = os.environ.get(name, "").strip()
        if not value:
            raise UserError(f"the environment variable {name} must hold the endpoint's key: set it")
        secret = cls(value)
        _blot_logs(secret)
        return secret

    def reveal(self) -> str:
        return self._value

    def blot(self, text: str) -> str:
        """The text without the key, as it is, quoted for URLs or in base64."""
        if not self._value:
            return text
        encoded = base64.b64encode(self._value.encode()).decode()
        for form in (self._value, quote(self._value, safe=""), encoded):
            text = text.replace(form, BLOT)
        return text

    def __repr__(self) -> str:
        return "Secret()"

    def __reduce__(self):
        raise TypeError("a key is not to be written anywhere")


def _blot_logs(secret: Secret) -> None:
    """From now on, no log record of this process holds the key."""
    make = logging.getLogRecordFactory()
    if secret.reveal() in getattr(make, "blotted", ()):
        return

    def make_blotted(*args, **kwargs):
        record = make(*args, **kwargs)
        try:
            text = record.getMessage()
        except Exception:  # a record that cannot be written is told by its handler
            return record
        if (clean := secret.blot(text)) != text:
            record.msg, record.args = clean, ()
        return record

    make_blotted.blotted = {secret.reveal(), *getattr(make, "blotted", ())}
    logging.setLogRecordFactory(make_blotted)
