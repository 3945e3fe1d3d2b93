"""How long the results of the shipped handlers can be looked at."""

from typing import Final

RESULT_TTL_S: Final = 7 * 86_400  # the longest that the runtime keeps one
