"""What a PostgreSQL URL may say: as `psql` takes it, and refused in a sentence that never quotes the password."""

import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

_SCHEMES = ("postgresql", "postgres")
_HOSTS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:,\s]*)(:[0-9]{1,5})?")
# What asyncpg reads of a URL (it would send any other name to the server as a setting of the session).
_PARAMETERS = frozenset(
    {
        "dbname",
        "gsslib",
        "host",
        "krbsrvname",
        "options",
        "passfile",
        "password",
        "port",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "user",
    }
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OURS = {
    "application_name",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "tcp_user_timeout",
}


class BadDatabaseUrl(ValueError):  # noqa: N818 - it states what is so
    """A database's URL cannot be used; the message says why and quotes no secret."""


def read_dsn(url: str) -> dict[str, Any]:
    """Return asyncpg's arguments for a URL such as `postgresql://user:password@host:5432/name?sslmode=require`.

    Several hosts are given as libpq takes them (`host1:5432,host2:5432`), with `target_session_attrs=read-write` for
    the one that is not a standby. `ssl=` is another name for `sslmode=`.

    Raises:
        BadDatabaseUrl: it is none, or says what is not known here.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise BadDatabaseUrl("the database's URL cannot be read") from None  # it quotes the URL
    if parts.scheme not in _SCHEMES:
        raise BadDatabaseUrl("the database's URL must begin with postgresql://")
    if "@" in parts.path + parts.query or parts.fragment:
        raise BadDatabaseUrl("in the database's URL, write / ? # and @ within a name or a password as %2F %3F %23 %40")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    account, _, hosts = parts.netloc.rpartition("@")
    if not all(_HOSTS.fullmatch(host) for host in hosts.split(",")):
        raise BadDatabaseUrl("the database's URL names no host that can be read: host, host:port or [address]:port")
    query = {"sslmode" if name == "ssl" else name: value for name, value in query.items()}
    for name in query.keys() & _OURS:
        raise BadDatabaseUrl(f"the database's URL: leave {name} out, Batchmill sets its own")
    if unknown := sorted(query.keys() - _PARAMETERS):
        raise BadDatabaseUrl(
            f"the database's URL has a parameter that is not known here: {unknown[0]!r}; "
            f"there are {', '.join(sorted(_PARAMETERS))}"
        )
    if (mode := query.get("sslmode")) is not None and mode not in _SSL_MODES:
        raise BadDatabaseUrl(f"the database's URL: sslmode is one of {', '.join(_SSL_MODES)}, not {mode!r}")
    user, _, password = account.partition(":")
    said = {"user": unquote(user), "password": unquote(password)}
    dsn = f"postgresql://{hosts}{parts.path}" + (f"?{urlencode(query)}" if query else "")
    return {"dsn": dsn, **{name: value for name, value in said.items() if value}}
