"""``gradguard serve``: runs the service."""

from __future__ import annotations

import logging
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from jobs.errors import JobError
from jobs.observability.hosts import is_loopback, url_host
from jobs.spec.job_spec import JobSpec
from service.reconcile.embedded_ray import embedded_ray, require_token
from service.settings import DATABASE_VARIABLE, HOST, PORT, default_database, storage_folder

if TYPE_CHECKING:
    from jobs.notify import Notifier
    from service.api import Context, Limits

logger = logging.getLogger("service")


def serve(
    address: Annotated[
        str | None, Option(help="URL of a Ray cluster's dashboard. Default: an embedded cluster on loopback.")
    ] = None,
    host: Annotated[str, Option(help="Interface to listen on.")] = HOST,
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")] = PORT,
    database: Annotated[
        str | None, Option(envvar=DATABASE_VARIABLE, help="sqlite:///FILE or postgresql://HOST/NAME.")
    ] = None,
    storage: Annotated[Path | None, Option(help="Folder of the jobs' files. Default: ~/gradguard.")] = None,
    auth: Annotated[
        bool | None, Option("--auth/--no-auth", help="Require tokens. Default: yes, except on loopback.")
    ] = None,
    tls_cert: Annotated[Path | None, Option(help="Certificate, PEM; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, Option(help="Private key, PEM.")] = None,
    checkpoint_url: Annotated[
        list[str] | None,
        Option(help="List checkpoints below this URL too, with the service's own credentials."),
    ] = None,
    max_upload_mb: Annotated[int, Option(min=1, help="Largest packed working directory, in MB.")] = 50,
    rate: Annotated[float, Option(min=0.1, help="Requests per second of each caller.")] = 50.0,
    lease_s: Annotated[
        float,
        Option(
            min=1.0, help="Seconds without a sign of life until another service on this database takes over."
        ),
    ] = 10.0,
    keep_days: Annotated[
        float | None,
        Option(min=0.0, help="Delete jobs and their files N days after their end. Default: never."),
    ] = None,
    notify: Annotated[
        Path | None, Option(help="YAML file with a section notify, as in a spec: who is told of every job.")
    ] = None,
    num_cpus: Annotated[int | None, Option(min=1, help="CPUs of the embedded cluster.")] = None,
) -> None:
    """Run the service: accept jobs over HTTP, queue them, follow them, restart them."""
    from jobs.notify import Notifier

    receivers = JobSpec.load(notify).notify if notify else ()
    if address is None:
        require_token()
    elif not address.startswith(("http://", "https://")):
        raise JobError(
            f"--address {address}: is no URL of a dashboard: write http://{address.split('/')[-1]}"
        )
    try:
        from service.api import Limits
        from service.api.http_protocol import check_tls
    except ModuleNotFoundError as error:
        raise JobError(f"gradguard serve needs {error.name}: run pip install 'gradguard[service]'") from None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logger.setLevel(logging.INFO)
    check_tls(tls_cert, tls_key)
    auth = _requires_tokens(host, auth)
    _warn(host, database, secure=tls_cert is not None)
    folder = storage_folder(storage)
    limits = Limits(requests_per_s=rate, burst=max(1, round(4 * rate)), upload_bytes=max_upload_mb << 20)
    with ExitStack() as stack:
        context = _context(folder, database or default_database(folder), auth, limits)
        context.checkpoint_urls = tuple(checkpoint_url or ())
        if address is None:
            address = stack.enter_context(embedded_ray(num_cpus=num_cpus))
        notices = stack.enter_context(Notifier(receivers))
        _run(context, address, host, port, (tls_cert, tls_key), lease_s, keep_days, notices)


def _context(folder: Path, url: str, auth: bool, limits: Limits) -> Context:
    from service.api import Context
    from service.store import JobStore, Packages, Tokens, open_database

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"cannot write {folder}: {error.strerror}; set --storage to another folder") from None
    engine = open_database(url)
    tokens = Tokens(engine)
    if auth and not any(row.revoked is None for row in tokens.all()):
        logger.warning("there is no token yet: `gradguard tokens create NAME --scope admin` makes one")
    return Context(JobStore(engine), Packages(engine), tokens, folder, auth, limits)


def _run(
    context: Context,
    address: str,
    host: str,
    port: int,
    tls: tuple[Path | None, Path | None],
    lease_s: float,
    keep_days: float | None,
    notices: Notifier,
) -> None:
    import uvicorn

    from service.api.http_protocol import server_config
    from service.app import make_app
    from service.reconcile import RayApi, Supervisor

    logging.getLogger("ray").setLevel(logging.WARNING)  # it reports every upload
    context.ray = ray = RayApi(address)
    context.supervisor = Supervisor(
        context.store,
        context.packages,
        ray,
        context.root,
        lease_s=lease_s,
        keep_days=keep_days,
        notices=notices,
    )
    app = make_app(context, loopback=is_loopback(host))
    config = server_config(app, host.strip("[]"), port, tls)
    context.supervisor.start()
    try:
        listening = _bound(config.host, port)
        place = listening.getsockname()[:2]

        class Announced(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                url = f"{'http' if tls[0] is None else 'https'}://{url_host(place[0])}:{place[1]}"
                tokens = "with tokens" if context.auth else "without tokens"
                typer.echo(f"serving at {url}, {tokens}; jobs in {context.root}; Ray at {address}")
                sys.stdout.flush()  # a program may wait for it

        Announced(config).run(sockets=[listening])
    finally:
        context.supervisor.close()


def _bound(host: str, port: int) -> socket.socket:
    """The socket that it listens on; uvicorn's own would end the program where the port is taken."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        why = error.strerror or error
        raise JobError(
            f"cannot listen at {host}:{port}: {why}; set --port, 0 for a free one, or --host"
        ) from None
    return listening


def _requires_tokens(host: str, auth: bool | None) -> bool:
    if auth is False and not is_loopback(host):
        why = f"anyone who reaches {host} could run any code"
        raise JobError(f"--no-auth is for loopback only: {why}; remove it")
    return not is_loopback(host) if auth is None else auth


def _warn(host: str, database: str | None, *, secure: bool) -> None:
    if not is_loopback(host) and not secure:
        logger.warning("without --tls-cert tokens travel unencrypted: put a TLS proxy in front")
    if database and "@" in database and any(database in argument for argument in sys.argv):
        logger.warning("anyone who lists processes can read --database: set %s instead", DATABASE_VARIABLE)
