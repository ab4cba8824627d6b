"""Credentials by their known shapes. Sources: each service's documentation of its key format, as of November 2026."""

from __future__ import annotations

import base64
import json
import re

from tunesmith.stages.prepare.cleaning.detectors import Detector


def _is_token(match: re.Match[str]) -> bool:
    """RFC 7519: the first part is a JSON object with `alg`."""
    head = match.group(0).split(".")[0]
    try:
        decoded = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return False
    return isinstance(decoded, dict) and "alg" in decoded


def _has_a_password(match: re.Match[str]) -> bool:
    """Placeholders such as user:password@ are no secret."""
    password = match.group(1).lower()
    return password.strip("<>{}[]$*%.x") not in ("", "password", "pass", "passwd", "pwd", "secret", "pw")


def _key(name: str, coarse: str, exact: str) -> Detector:
    return Detector("api_keys", name, coarse, re.compile(rf"(?<![A-Za-z0-9]){exact}(?![A-Za-z0-9])"))


SECRETS = (
    Detector(
        "private_keys",
        "PEM private key",
        r"-----BEGIN [A-Z ]*PRIVATE KEY",
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[A-Za-z0-9+/=\s:,.()\\]|-(?!-)){40,20000}?(?:-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)"
        ),
    ),
    Detector(
        "tokens",
        "JSON web token",
        r"eyJ[\w-]+\.eyJ",
        re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}"),
        _is_token,
    ),
    _key("AWS access key", r"A[KS]IA[A-Z2-7]{4}", r"(?:AKIA|ASIA)[A-Z2-7]{16}"),
    _key("GitHub token", r"gh[pousr]_[A-Za-z0-9]{4}", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    _key("GitHub token", r"github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    _key("GitLab token", r"glpat-", r"glpat-[\w-]{20,}"),
    _key("Anthropic key", r"sk-ant-", r"sk-ant-[a-z]+\d\d-[\w-]{80,}"),
    _key("OpenAI key", r"sk-(?:proj|svcacct|admin)-", r"sk-(?:proj|svcacct|admin)-[\w-]{40,}"),
    _key("OpenAI key", r"sk-[A-Za-z0-9]{20}", r"sk-[A-Za-z0-9]{48}"),
    _key("Hugging Face token", r"hf_[A-Za-z]{4}", r"hf_[A-Za-z]{34}"),
    _key("Google key", r"AIza[\w-]{4}", r"AIza[\w-]{35}"),
    _key("Google client secret", r"GOCSPX-", r"GOCSPX-[\w-]{28}"),
    _key("Slack token", r"xox[abeoprs]-", r"xox[abeoprs]-(?:\d-)?[A-Za-z0-9]{8,}(?:-[A-Za-z0-9]+)+"),
    _key("Slack webhook", r"hooks\.slack\.com/services", r"https://hooks\.slack\.com/services/T\w{8,}/B\w{8,}/\w{20,}"),
    _key("Stripe key", r"[sr]k_(?:live|test)_", r"[sr]k_(?:live|test)_[A-Za-z0-9]{24,}"),
    _key("SendGrid key", r"SG\.[\w-]{22}", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _key("npm token", r"npm_[A-Za-z0-9]{4}", r"npm_[A-Za-z0-9]{36}"),
    _key("PyPI token", r"pypi-AgE", r"pypi-AgE[\w-]{50,}"),
    _key("Telegram bot token", r"\d:AA[\w-]{4}", r"\d{8,10}:AA[\w-]{33}"),
    Detector(
        "api_keys",
        "password in a URL",
        r"://[^/\s:@]{1,64}:[^/\s:@]{1,64}@",
        re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@]{1,64}:([^/\s:@]{1,64})@[\w.-]+"),
        _has_a_password,
    ),
)
"""In order of precedence: a longer, surer shape comes first."""
