"""Ask about pictures with the client of this repository: each one's best label, as it is answered.

python examples/ask.py examples/digit-7.png …
TRESNET_URL=https://gateway.example TRESNET_API_KEY=tresnet_… python examples/ask.py …
"""

import os
import sys
from pathlib import Path

from client import Client, ClientError

paths = [Path(argument) for argument in sys.argv[1:]]
url = os.environ.get("TRESNET_URL", "http://127.0.0.1:8080")
failed = False
with Client(url, api_key=os.environ.get("TRESNET_API_KEY")) as gateway:
    try:
        for path, result in zip(paths, gateway.classify_each(paths, top_k=1), strict=True):
            if result.error is not None:
                print(f"{path.name} {result.error.code}")
                failed = True
            else:
                best = result.predictions[0]
                print(f"{path.name} {best.label} {best.score:.3f}")
    except ClientError as error:  # the gateway is away, the key is wrong, …
        sys.exit(str(error))
sys.exit(1 if failed else 0)
