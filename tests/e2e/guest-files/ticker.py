# Executes a page that never was before each time the host says a number, and says the number back once it did.
#
#   host → guest   N\n        guest → host   N\n
#
# The page: mov eax, N; ret; two zeros; then, as words of 8 bytes, N times an odd constant (`faults/ticks.rs` makes the same).
import ctypes, mmap, struct, time

port = open("/dev/virtio-ports/nephoscope.ticks", "r+b", buffering=0)
waiting = b""
while True:
    end = waiting.find(b"\n")
    if end < 0:
        # While no host is connected, as after a migration, there is nothing to read and nobody to answer.
        try:
            waiting += port.read(64) or b""
        except OSError:
            time.sleep(0.01)
        continue
    line, waiting = waiting[:end], waiting[end + 1 :]
    if not line.isdigit():
        continue
    number = int(line)
    word = struct.pack("<Q", number * 0x9E3779B97F4A7C15 % 2**64)
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8" + struct.pack("<I", number) + b"\xc3\0\0" + word * 511)
    begin = ctypes.c_char.from_buffer(page)
    answer = ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(begin))()
    del begin
    page.close()
    try:
        port.write(b"%d\n" % answer)
    except OSError:
        pass
