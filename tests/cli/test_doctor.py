"""Findings of the doctor."""

import json
from pathlib import Path

import pytest

from runyard.cli.instance.doctor import (
    Diagnosis,
    accelerator_findings,
    certificate_finding,
    package_findings,
    parse_version,
    python_finding,
    sqlite_finding,
)
from runyard.settings import read_settings
from tests.support.certificates import KeyPair, make_certificate
from tests.support.commands import Runyard


@pytest.mark.parametrize(
    ("running", "state"),
    [
        ((3, 11, 7), "note"),
        ((3, 11, 14), "ok"),
        ((3, 12, 4), "note"),
        ((3, 13, 6), "ok"),
        ((3, 14, 0), "ok"),
    ],
)
def test_python_releases_with_known_bugs_are_noted(running: tuple[int, ...], state: str) -> None:
    assert python_finding(running).state == state


@pytest.mark.parametrize(
    ("running", "state"),
    [
        ((3, 40, 1), "note"),
        ((3, 44, 6), "ok"),
        ((3, 45, 0), "note"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "note"),
        ((3, 52, 0), "ok"),
    ],
)
def test_sqlite_releases_with_known_bugs_are_noted(running: tuple[int, ...], state: str) -> None:
    assert sqlite_finding(running).state == state


def test_missing_packages_name_what_to_install() -> None:
    found = {
        finding.name: finding
        for finding in package_findings(lambda name: None if name == "granian" else "99.0")
    }
    assert found["packages of the server"].state == "missing"
    assert found["packages of the server"].observed == "without granian"
    assert "runyard[server]" in found["packages of the server"].suggestion
    assert found["packages of the trainer"].state == "ok"


def test_a_package_below_its_floor_is_noted() -> None:
    found = {
        finding.name: finding
        for finding in package_findings(lambda name: "12.1.0" if name == "pillow" else "99.0")
    }
    assert found["packages of the trainer"].state == "note"
    assert "pillow 12.2.0" in found["packages of the trainer"].suggestion


def test_a_driver_that_torch_cannot_use_is_noted() -> None:
    seen: dict[str, object] = {"version": "2.13.0+cpu", "cuda": [], "mps": False, "threads": 2}
    assert accelerator_findings(seen, has_nvidia_driver=True)[1].state == "note"
    assert "CUDA build" in accelerator_findings(seen, has_nvidia_driver=True)[1].suggestion
    assert accelerator_findings(seen, has_nvidia_driver=False)[1].observed == "none"


def test_a_torch_that_cannot_be_imported_is_missing() -> None:
    found = accelerator_findings("ImportError: libgomp.so.1", has_nvidia_driver=False)
    assert [finding.state for finding in found] == ["missing"]


def test_versions_are_read_up_to_the_first_word() -> None:
    assert (parse_version("2.13.0+cpu"), parse_version("3.51.0rc1")) == ((2, 13, 0), (3, 51))


def check_certificate(pair: KeyPair, *, key: Path | None = None) -> Diagnosis:
    settings = read_settings({}, tls_cert=str(pair.certificate), tls_key=str(key or pair.key))
    return certificate_finding(settings, None)


def test_a_certificate_is_shown_with_its_names_and_the_days_left(tmp_path: Path) -> None:
    finding = check_certificate(make_certificate(tmp_path, days=90))
    assert finding.state == "ok"
    assert finding.observed.startswith("for localhost, 127.0.0.1; expires on 20")
    assert finding.observed.endswith(" UTC, in 89 days")


def test_a_certificate_that_expires_soon_is_noted(tmp_path: Path) -> None:
    finding = check_certificate(make_certificate(tmp_path, days=13))
    assert finding.state == "note"
    assert "try: renew it, and restart the server" in finding.suggestion


def test_a_certificate_without_its_key_is_missing(tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other")
    finding = check_certificate(make_certificate(tmp_path, days=90), key=other.key)
    assert finding.state == "missing"
    assert "is not the private key" in finding.observed
    assert finding.suggestion.startswith("try: ")


def test_the_report_is_machine_readable_and_ends_by_what_is_missing(
    runyard: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.cli.instance import doctor

    monkeypatch.setattr(doctor, "query_torch", lambda: "No module named 'torch'")
    result = runyard("doctor", "--json")
    findings = {
        finding["name"]: finding["state"] for finding in json.loads(result.stdout)["findings"]
    }
    assert result.exit_code == 1
    assert findings["torch"] == "missing"
    assert findings["instance"] == "note"
