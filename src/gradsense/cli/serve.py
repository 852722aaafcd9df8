"""``gradsense serve``: a larger model for gateways' unsure verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradsense.cli.lazy import command
from gradsense.errors import InputError


@command(
    example="gradsense serve --model EDGE --host 0.0.0.0 --cert chain.pem --key key.pem "
    "--token-file token"
)
def serve(
    model: Annotated[Path, typer.Option(help="A bundle that gradsense export wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8765,
    cert: Annotated[Path | None, typer.Option(help="TLS certificate chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that gateways must send.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the model.")] = 2,
    max_prompts: Annotated[int, typer.Option(min=1, help="Prompts of one request.")] = 1024,
) -> None:
    """Answer gateways' requests for verdicts on prompts with a larger model, over HTTPS.

    Without TLS and a token it listens on this machine only.
    """
    import ssl

    import uvicorn

    from gradsense.data.networks import is_loopback
    from gradsense.detection.detector import Detector
    from gradsense.gateway.settings import read_secret
    from gradsense.serving.server import create_app

    if (cert is None) != (key is None):
        raise InputError("a certificate needs its key", hint="give both --cert and --key")
    if not is_loopback(host) and (cert is None or token_file is None):
        raise InputError(
            f"{host} can be reached by others, who would need neither TLS nor a token",
            hint="give --cert, --key and --token-file, or listen on 127.0.0.1",
            field="--host",
        )
    token = None if token_file is None else read_secret(token_file)
    for file in (cert, key):
        if file is not None and not file.is_file():
            raise InputError("no such file", hint="check the path", file=file)
    config = uvicorn.Config(
        create_app(Detector.load(model, threads=threads), token=token, max_prompts=max_prompts),
        host=host,
        port=port,
        ssl_certfile=cert,
        ssl_keyfile=key,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Requests are rare, and a new connection costs more than an answer.
        timeout_keep_alive=60,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            f"certificate and key cannot be used ({error})",
            hint="give a PEM chain and the key that belongs to it",
            file=cert,
        ) from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    uvicorn.Server(config).run()
