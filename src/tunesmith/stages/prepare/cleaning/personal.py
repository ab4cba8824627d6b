"""Personal data by pattern and check digit."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from tunesmith.stages.prepare.cleaning import checksums
from tunesmith.stages.prepare.cleaning.detectors import Detector

RESERVED = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid", ".localhost")  # RFC 2606
NEITHER_SIDE = r"(?<![\w.])", r"(?![\w]|[.,-]\d)"  # a number that is no part of a longer one


def _bare(match: re.Match[str]) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", match.group(0))


def _is_address(match: re.Match[str]) -> bool:
    domain = match.group(0).rpartition("@")[2].lower()
    return not any(domain == name.lstrip(".") or domain.endswith(f".{name.lstrip('.')}") for name in RESERVED)


def _is_public_ip(match: re.Match[str]) -> bool:
    try:
        return ipaddress.ip_address(match.group(0)).is_global
    except ValueError:
        return False


def _is_phone(match: re.Match[str]) -> bool:
    """E.164: at most 15 digits, a country code does not begin with 0; at least 8 to be no other number."""
    digits = _bare(match)
    if re.fullmatch(r"1?(?:555\d{7}|[2-9]\d\d55501\d\d)", digits):
        return False  # no area has the code 555, and 555-01xx is reserved for fiction
    return len(set(digits)) > 2 and 8 <= len(digits) <= 15


def _ascii(pattern: str) -> re.Pattern[str]:
    """ASCII's idea of a letter, RE2's too: a number may follow a Chinese character directly."""
    return re.compile(pattern, re.ASCII)


def _number(kind: str, name: str, coarse: str, exact: str, check: Callable[[str], bool]) -> Detector:
    before, behind = NEITHER_SIDE
    return Detector(kind, name, coarse, _ascii(before + exact + behind), lambda match: check(_bare(match)))


def _id(name: str, coarse: str, exact: str, check: Callable[[str], bool]) -> Detector:
    return _number("national_id", name, coarse, exact, check)


PERSONAL = (
    _number(
        "iban",
        "IBAN",
        r"\b[A-Z]{2}\d\d ?[A-Z0-9]{4}",
        r"[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?",
        checksums.is_iban,
    ),
    _number("card", "payment card", r"\d{4}[ -]?\d{4,6}[ -]?\d{4,5}", r"\d(?:[ -]?\d){12,18}", checksums.is_card),
    _id("Chinese resident identity", r"\d{17}[\dXx]", r"\d{17}[\dXx]", checksums.is_chinese_id),
    _id(
        "Italian codice fiscale",
        r"[A-Z]{6}\d\d[A-Z]\d\d[A-Z]",
        r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]",
        checksums.is_italian_code,
    ),
    _id("Spanish DNI or NIE", r"\b[\dXYZ]\d{7}-?[A-Z]\b", r"[\dXYZ]\d{7}-?[A-Z]", checksums.is_spanish_id),
    _id("Brazilian CPF", r"\d{3}\.\d{3}\.\d{3}-\d\d", r"\d{3}\.\d{3}\.\d{3}-\d\d", checksums.is_brazilian_id),
    _id(
        "French NIR",
        r"[12] ?\d\d ?[01]\d ?\d\d ?\d{3}",
        r"[12] ?\d\d ?[01]\d ?\d\d ?\d{3} ?\d{3} ?\d\d",
        checksums.is_french_id,
    ),
    _id("Korean resident registration", r"\d{6}-[1-8]\d{6}", r"\d{6}-[1-8]\d{6}", checksums.is_korean_id),
    _id(
        "Swedish personnummer",
        r"\d{6}[-+]\d{4}",
        r"(?:19|20)?(?:\d{6}[-+]\d{4})",
        lambda text: checksums.is_swedish_id(text[-10:]),
    ),
    Detector(
        "national_id",
        "Finnish henkilötunnus",
        r"\d{6}[-+A]\d{3}[0-9A-Y]",
        _ascii(r"(?<![\w.])\d{6}[-+A]\d{3}[0-9A-Y](?!\w)"),
        lambda match: checksums.is_finnish_id(match.group(0)),
    ),
    _id("Polish PESEL", r"\b\d{11}\b", r"\d{11}", checksums.is_polish_id),
    _id("Indian Aadhaar", r"[2-9]\d{3} \d{4} \d{4}", r"[2-9]\d{3} \d{4} \d{4}", checksums.is_indian_id),
    Detector(
        "email",
        "e-mail address",
        r"@",
        _ascii(r"(?<![\w.+-])[A-Za-z0-9_%+-][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"),
        _is_address,
    ),
    Detector(
        "ip",
        "IP address",
        r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:",
        _ascii(
            r"(?<![\w.:-])(?<!version )(?<!Version )(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4})(?![\w:-]|\.\d)"
        ),
        _is_public_ip,
    ),
    Detector(
        "phone",
        "phone number",
        r"\+\d[\d ().-]{6}|\d{3}\)?[ .-]\d{3}[ .-]\d{4}|\b1[3-9]\d{9}",
        # International, North American, and Chinese mobile numbers.
        _ascii(
            r"(?<![\w+.-])(?:\+[1-9](?:[ ().-]{0,2}\d){7,14}|(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}|1[3-9]\d{9})(?!\w|[.-]\d)"
        ),
        _is_phone,
    ),
)
"""In order of precedence: what carries a check digit comes before what only looks like it."""
