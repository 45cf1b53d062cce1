"""Counts the units in received RTP packets, for the clients in Python. A unit is missing if its stamp is missing, or if
a packet between the first and the last unit is missing."""

STAMP = b"camera-sim stamp"


class Count:
    def __init__(self):
        self.units = set()
        self.packets = set()
        self.newest = None

    def packet(self, sequence, payload):
        """Adds a packet: its 16-bit sequence number and its payload, or a unit without a number (None)."""
        if sequence is not None:
            if self.newest is None:
                self.newest = sequence
            # The extended number nearest to the newest one.
            extended = self.newest + ((sequence - self.newest + 0x8000) & 0xFFFF) - 0x8000
            self.newest = max(self.newest, extended)
            self.packets.add(extended)
        at = payload.find(STAMP)
        if at >= 0:
            digits = payload[at + len(STAMP) : at + len(STAMP) + 10]
            number = 0
            for digit in digits:
                number = number * 128 + (digit & 0x7F)
            self.units.add(number)

    def result(self, seconds):
        """Returns the line that `run` reads. Fewer than 20 units a second count as missing: the camera has 30, and connecting takes time."""
        span = max(self.units) - min(self.units) + 1 if self.units else 0
        missing = span - len(self.units)
        lost = max(self.packets) - min(self.packets) + 1 - len(self.packets) if self.packets else 0
        late = max(0, 20 * (seconds - 2) - len(self.units))
        return f"{len(self.units)} units, {missing + lost + late} missing ({lost} packets, {late} too few)"
