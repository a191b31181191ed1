"""Something for the interpreter to do that touches a few modules written in C."""
import hashlib
import json
import re
import zlib

text = json.dumps({"n": [i * i for i in range(2000)]})
assert zlib.decompress(zlib.compress(text.encode())) == text.encode()
print(len(re.findall(r"\d+", text)), hashlib.sha256(text.encode()).hexdigest()[:16])
