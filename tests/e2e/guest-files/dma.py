"""Code that no instruction of the guest wrote: a disk's DMA brings it into a frame that was executed with a library's page.

The first argument is a file or a disk. With `late`, the frame is executed once more while the disk has not answered yet.
"""
import ctypes
import mmap
import os
import sys
import threading
import time

PAGE = 4096
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
FILE = sys.argv[1] if len(sys.argv) > 1 else "/var/tmp/dma"
LATE = "late" in sys.argv[2:]
# mov eax, 42; ret
ANSWER = b"\xb8\x2a\x00\x00\x00\xc3"


def offset_in_file(address):
    """Where in its file the byte at this address lies."""
    for line in open("/proc/self/maps"):
        first = line.split()[0].split("-")
        low, high = (int(part, 16) for part in first)
        if low <= address < high:
            return address - low + int(line.split()[2], 16)
    raise LookupError(hex(address))


library = ctypes.CDLL(LIBC)
at = offset_in_file(ctypes.cast(library.abs, ctypes.c_void_p).value)
with open(LIBC, "rb") as file:
    file.seek(at - at % PAGE)
    known = file.read(PAGE)
start = at % PAGE
other = b"\xcc" * start + ANSWER + b"\xcc" * (PAGE - start - len(ANSWER))
with open(FILE, "wb") as file:
    file.write(other)
    file.flush()
    os.fsync(file.fileno())

page = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page[:] = known
address = ctypes.addressof(ctypes.c_char.from_buffer(page)) + start
function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(address)
assert function(-5) == 5
direct = os.open(FILE, os.O_RDONLY | os.O_DIRECT)


def read():
    assert os.preadv(direct, [page], 0) == PAGE


begun = time.monotonic()
reader = threading.Thread(target=read)
reader.start()
if LATE:
    # The disk has the page by now.
    time.sleep(2)
    assert function(-5) == 5, "the disk was too quick"
    waited = time.monotonic() - begun
reader.join()
assert function(-5) == 42
if LATE:
    print(f"ran after {waited:.1f} s, read after {time.monotonic() - begun:.1f} s")
    # Whoever compares what runs with what was seen has a while to do so.
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.2)
        assert function(-5) == 42
print("read and run")
