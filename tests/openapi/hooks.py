"""Tells schemathesis which bodies to send as SDP: offers and fragments that are right, almost right and wrong."""

from pathlib import Path

import schemathesis
from hypothesis import strategies as st

SEEDS = Path(__file__).parent.parent / "fuzz" / "seeds"


def texts(directory):
    """Returns the seeds of a fuzz target, whole, cut, and with a line replaced."""
    seeds = [path.read_bytes() for path in sorted((SEEDS / directory).iterdir())]
    whole = st.sampled_from(seeds)
    cut = st.builds(lambda seed, part: seed[: int(len(seed) * part)], whole, st.floats(0, 1))
    noise = st.builds(
        lambda seed, line, number: b"\r\n".join(
            line.encode() if index == number else old for index, old in enumerate(seed.split(b"\r\n"))
        ),
        whole,
        st.text(max_size=40),
        st.integers(0, 40),
    )
    return whole | cut | noise | st.binary(max_size=100)


schemathesis.openapi.media_type("application/sdp", texts("sdp"))
schemathesis.openapi.media_type("application/trickle-ice-sdpfrag", texts("ice_fragment"))
