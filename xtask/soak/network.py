# network.py PORT: sends random bytes to this machine's server and takes as many back, some times.
# Both say the checksum of what they send, and compare it with that of what comes.
import os
import socket
import sys
import zlib

HOST = "10.0.2.2"


def take(stream, length):
    data = stream.read(length)
    if len(data) != length:
        sys.exit(f"{len(data)} of {length} bytes came")
    return data


for length in (1, 1000, 100_000, 2_000_000):
    data = os.urandom(length)
    with socket.create_connection((HOST, int(sys.argv[1])), timeout=120) as connection:
        connection.sendall(length.to_bytes(8, "little") + data)
        connection.sendall(zlib.crc32(data).to_bytes(4, "little"))
        with connection.makefile("rb") as stream:
            answer = take(stream, 1)
            if answer != b"+":
                sys.exit(f"the server got other bytes than the {length} that were sent")
            data = take(stream, length)
            if take(stream, 4) != zlib.crc32(data).to_bytes(4, "little"):
                sys.exit(f"other bytes came than the {length} that were sent")
print("ok")
