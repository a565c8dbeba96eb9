"""Flags over environment over file over defaults, and a name for every bad value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from coppice.errors import RunFileError
from server.config import Address, ServerConfig, resolve

FLAGS = {
    "data": "by-flag",
    "listen": "flag:1",
    "dashboard": "flag:2",
    "database": "sqlite:///flag",
    "durable": "false",
    "name": "flag",
    "enrolment": "flag:3",
    "dashboard_tls": "true",
    "certificate_days": "4",
    "grace_days": "5.5",
}
VARIABLES = {
    "COPPICE_DATA": "by-variable",
    "COPPICE_LISTEN": "variable:1",
    "COPPICE_DASHBOARD": "variable:2",
    "COPPICE_DATABASE": "sqlite:///variable",
    "COPPICE_DURABLE": "false",
    "COPPICE_NAME": "variable",
    "COPPICE_ENROLMENT": "variable:3",
    "COPPICE_DASHBOARD_TLS": "true",
    "COPPICE_CERTIFICATE_DAYS": "4",
    "COPPICE_GRACE_DAYS": "5.5",
}
FILE = """
data = "by-file"
listen = "file:1"
dashboard = "file:2"
database = "sqlite:///file"
durable = false
name = "file"
enrolment = "file:3"
dashboard_tls = true
certificate_days = 4
grace_days = 5.5
"""


def all_from(source: str) -> ServerConfig:
    return ServerConfig(
        data=Path(f"by-{source}").absolute(),
        listen=Address(source, 1),
        enrolment=Address(source, 3),
        dashboard=Address(source, 2),
        dashboard_tls=True,
        insecure=False,
        certificate_days=4.0,
        grace_days=5.5,
        database=f"sqlite:///{source}",
        durable=False,
        name=source,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(FILE)
    return path


def test_defaults_let_devices_in_from_anywhere_and_people_from_this_machine() -> None:
    data = Path("coppice-data").absolute()
    config = resolve({}, {})
    assert config == ServerConfig(
        data=data,
        listen=Address("0.0.0.0", 7433),
        enrolment=Address("0.0.0.0", 7434),
        dashboard=Address("127.0.0.1", 7480),
        dashboard_tls=False,
        insecure=False,
        certificate_days=14.0,
        grace_days=90.0,
        database=f"sqlite:///{data}/coppice.sqlite",
        durable=True,
        name=os.uname().nodename,
    )
    assert config.dashboard.is_loopback


@pytest.mark.parametrize(
    ("listen", "enrolment"),
    [("10.0.0.7:9000", "10.0.0.7:9001"), ("[::]:0", "[::]:0"), ("10.0.0.7:65535", "10.0.0.7:0")],
)
def test_devices_enrol_beside_where_they_connect(listen: str, enrolment: str) -> None:
    assert str(resolve({"listen": listen}, {}).enrolment) == enrolment
    told = resolve({"listen": listen, "enrolment": "10.0.0.8:1"}, {})
    assert str(told.enrolment) == "10.0.0.8:1"


def test_insecure_is_for_this_machine_only() -> None:
    config = resolve({"insecure": "true"}, {})
    assert (config.insecure, str(config.listen)) == (True, "127.0.0.1:7433")
    assert resolve({"insecure": "true", "listen": "[::1]:1"}, {}).listen.port == 1
    for listen in ("0.0.0.0:7433", "192.168.0.1:7433"):
        with pytest.raises(RunFileError, match="only this machine may be let in"):
            resolve({"insecure": "true", "listen": listen}, {})


def test_other_machines_reach_the_dashboard_by_https_and_with_a_login_only() -> None:
    elsewhere = {"dashboard": "0.0.0.0:7480"}
    assert resolve(elsewhere, {}).dashboard_tls
    assert not resolve({}, {}).dashboard_tls
    assert resolve({"dashboard_tls": "true"}, {}).dashboard_tls
    for flags, reason in (
        (elsewhere | {"dashboard_tls": "false"}, "dashboard_tls: is false, but other machines"),
        (elsewhere | {"insecure": "true"}, "dashboard: is 0.0.0.0:7480; with --insecure there is"),
        ({"dashboard_tls": "true", "insecure": "true"}, "there are no certificates"),
    ):
        with pytest.raises(RunFileError, match=reason):
            resolve(flags, {})


@pytest.mark.parametrize("days", ["0", "-1", "nan", "soon", "3651"])
def test_days_are_bounded(days: str) -> None:
    with pytest.raises(RunFileError, match=r"grace_days: is .*; allowed is a number of days"):
        resolve({"grace_days": days}, {})


def test_file_wins_over_defaults(file: Path) -> None:
    assert resolve({"config": str(file)}, {}) == all_from("file")


def test_variable_may_name_the_file(file: Path) -> None:
    assert resolve({}, {"COPPICE_CONFIG": str(file)}) == all_from("file")


def test_flag_that_names_a_file_wins_over_the_variable(file: Path) -> None:
    assert resolve({"config": str(file)}, {"COPPICE_CONFIG": "/no/such"}) == all_from("file")


def test_environment_wins_over_the_file(file: Path) -> None:
    assert resolve({"config": str(file)}, VARIABLES) == all_from("variable")


def test_flags_win_over_everything(file: Path) -> None:
    assert resolve(FLAGS | {"config": str(file)}, VARIABLES) == all_from("flag")


def test_flag_that_was_not_given_leaves_the_others_alone(file: Path) -> None:
    flags = {"config": str(file), "name": None, "listen": None, "command": "start"}
    assert resolve(flags, {"COPPICE_NAME": "variable"}).name == "variable"
    assert resolve(flags, {}).listen == Address("file", 1)


def test_store_is_in_the_data_folder_wherever_that_is() -> None:
    assert resolve({"data": "/tmp/x"}, {}).database == "sqlite:////tmp/x/coppice.sqlite"
    assert resolve({"data": "~/x"}, {}).data == Path.home() / "x"


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("0.0.0.0:80", Address("0.0.0.0", 80), "0.0.0.0:80"),
        ("localhost:0", Address("localhost", 0), "localhost:0"),
        ("[::1]:7433", Address("::1", 7433), "[::1]:7433"),
        ("[::]:65535", Address("::", 65535), "[::]:65535"),
        ("8080", Address("0.0.0.0", 8080), "0.0.0.0:8080"),
        (":8080", Address("0.0.0.0", 8080), "0.0.0.0:8080"),
        ("", Address("0.0.0.0", 7433), "0.0.0.0:7433"),
    ],
)
def test_address_is_read_and_shown(text: str, address: Address, shown: str) -> None:
    found = resolve({"listen": text}, {}).listen
    assert found == address
    assert str(found) == shown


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
    ],
)
def test_loopback_is_this_machine(host: str, is_loopback: bool) -> None:
    assert Address(host, 1).is_loopback is is_loopback


@pytest.mark.parametrize("key", ["listen", "dashboard"])
@pytest.mark.parametrize(
    "text",
    ["host", "host:", "host:x", "host:65536", "host:-1", "host:7 ", " host:7", "::1", "[::1]",
     "a:b:7", "[:7", "host:٣"],
)  # fmt: skip
def test_address_that_is_none_is_refused_by_name(key: str, text: str) -> None:
    with pytest.raises(RunFileError) as caught:
        resolve({key: text}, {})
    assert str(caught.value).startswith(f"{key}: is {text!r}; allowed is HOST:PORT")


@pytest.mark.parametrize("text", ["yes", "1", "", "truee"])
def test_truth_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(RunFileError, match=r"durable: is .*; allowed are true and false"):
        resolve({}, {"COPPICE_DURABLE": text})


@pytest.mark.parametrize(("text", "durable"), [("true", True), ("True", True), ("FALSE", False)])
def test_truth_is_read_in_any_case(text: str, durable: bool) -> None:
    assert resolve({"durable": text}, {}).durable is durable


class TestFile:
    def error(self, path: Path, content: str | bytes) -> str:
        data: Any = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(data)
        with pytest.raises(RunFileError) as caught:
            resolve({"config": str(path)}, {})
        return str(caught.value)

    def test_unknown_key_is_named_with_those_allowed(self, file: Path) -> None:
        assert self.error(file, 'lisent = "x"') == (
            f"{file}: lisent is not a key; "
            "allowed are connections, dashboard_connections, calls, client_calls, stall_seconds, "
            "enrolment_calls, disk_reserve_mb, run_disk_mb, "
            "data, listen, enrolment, dashboard, dashboard_tls, insecure, "
            "certificate_days, "
            "grace_days, database, durable, name"
        )

    def test_syntax_error_tells_the_line(self, file: Path) -> None:
        text = self.error(file, 'name = "x"\nlisten = = 1\n')
        assert text.startswith(f"{file} is not valid TOML")
        assert "line 2" in text

    def test_file_that_is_no_text_is_named(self, file: Path) -> None:
        assert self.error(file, b"\xff\xfe").startswith(f"{file} is not valid TOML")

    @pytest.mark.parametrize(
        ("line", "mistake"),
        [
            ("data = 5", "data is 5; allowed is a string"),
            ("listen = 7433", "listen is 7433; allowed is a string"),
            ('name = ["x"]', "name is ['x']; allowed is a string"),
            ("[database]", "database is {}; allowed is a string"),
            ('durable = "true"', "durable is 'true'; allowed is true or false"),
        ],
    )
    def test_value_of_the_wrong_type_is_named(self, file: Path, line: str, mistake: str) -> None:
        assert self.error(file, line) == f"{file}: {mistake}"

    def test_bad_address_in_it_is_named(self, file: Path) -> None:
        assert self.error(file, 'listen = "nowhere"').startswith("listen: is 'nowhere'")

    @pytest.mark.parametrize("name", ["none.toml", "."])
    def test_file_that_cannot_be_read_is_named(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(RunFileError, match=f"cannot read {tmp_path / name}"):
            resolve({"config": str(tmp_path / name)}, {})
