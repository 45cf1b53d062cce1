"""Counts the units that a client received, by the stamps of the camera simulator (src/h264/stamp.rs). A unit is missing
if its stamp is missing, or if a packet between the first and the last unit is missing.

The clients in Python import this module. count.py FILE SECONDS counts the units of a video in a file.
"""

import re
import sys
from pathlib import Path

NUMBER = re.compile(rb"camera-sim stamp(.{10})", re.DOTALL)


def numbers(data):
    """Returns the numbers of all units whose stamps are in `data`. Each digit has seven bits."""
    found = set()
    for digits in NUMBER.findall(data):
        number = 0
        for digit in digits:
            number = number * 128 + (digit & 0x7F)
        found.add(number)
    return found


class Count:
    def __init__(self):
        self.units = set()
        self.packets = set()
        self.newest = None

    def packet(self, sequence, payload):
        """Adds a packet: its 16-bit sequence number and its payload."""
        if self.newest is None:
            self.newest = sequence
        # The extended number nearest to the newest one.
        extended = self.newest + ((sequence - self.newest + 0x8000) & 0xFFFF) - 0x8000
        self.newest = max(self.newest, extended)
        self.packets.add(extended)
        self.units |= numbers(payload)

    def result(self, seconds):
        """Returns the line that the scripts read. Fewer than 20 units a second count as missing: the camera has 30, and
        connecting takes time."""
        missing = max(self.units) - min(self.units) + 1 - len(self.units) if self.units else 0
        lost = max(self.packets) - min(self.packets) + 1 - len(self.packets) if self.packets else 0
        late = max(0, 20 * (seconds - 2) - len(self.units))
        return f"{len(self.units)} units, {missing + lost + late} missing ({lost} packets, {late} too few)"


def main():
    count = Count()
    count.units = numbers(Path(sys.argv[1]).read_bytes())
    print(count.result(int(sys.argv[2])))


if __name__ == "__main__":
    main()
