"""Check digits: which numbers are what they look like. Each function takes the bare characters, without separators."""

from __future__ import annotations

from datetime import date

# Length of an IBAN by country (SWIFT IBAN registry, release 99, 2024).
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29, "BY": 28, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18,
    "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26,
    "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24,
    "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23,
    "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip


def is_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """ISO 13616: the country's length, and ISO 7064 mod 97-10 over the number turned round."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(letter, 36)) for letter in text[4:] + text[:4])) % 97 == 1


def is_card(digits: str) -> bool:
    """A known issuer's prefix and length (ISO/IEC 7812), Luhn, and more than one digit."""
    return len(set(digits)) > 1 and len(digits) in _card_lengths(digits) and is_luhn(digits)


def _card_lengths(digits: str) -> tuple[int, ...]:
    four = int(digits[:4])
    if digits[0] == "4":
        return (13, 16, 19)  # Visa
    if 5100 <= four <= 5599 or 2221 <= four <= 2720:
        return (16,)  # Mastercard
    if digits[:2] in ("34", "37"):
        return (15,)  # American Express
    if four == 6011 or digits[:2] == "65" or 6440 <= four <= 6499:
        return (16, 19)  # Discover
    if 3528 <= four <= 3589:
        return (16, 19)  # JCB
    if digits[:2] in ("36", "38", "39") or 3000 <= four <= 3059:
        return (14,)  # Diners
    return (16, 17, 18, 19) if digits[:2] == "62" else ()  # UnionPay


def is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return 1850 <= year <= 2100


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def is_chinese_id(text: str) -> bool:
    """GB 11643-1999: 17 digits with a date of birth and a check character, ISO 7064 mod 11-2."""
    if not is_date(int(text[6:10]), int(text[10:12]), int(text[12:14])):
        return False
    return (
        "10X98765432"[_weighted(text, (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11] == text[17].upper()
    )


def is_spanish_id(text: str) -> bool:
    """DNI and NIE: eight digits (X, Y, Z stand for 0, 1, 2) and a letter, mod 23."""
    number = int(text[:-1].upper().translate(str.maketrans("XYZ", "012")))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[-1].upper()


def is_italian_code(text: str) -> bool:
    """Codice fiscale: 15 characters and a check letter (D.M. 23 December 1976)."""
    odd = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True))
    odd |= dict(
        zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23), strict=True)
    )  # fmt: skip
    text = text.upper()
    even = {letter: int(letter) if letter.isdigit() else ord(letter) - 65 for letter in odd}
    total = sum((odd if place % 2 == 0 else even)[letter] for place, letter in enumerate(text[:15]))
    return chr(65 + total % 26) == text[15]


def is_brazilian_id(digits: str) -> bool:
    """CPF: nine digits and two check digits, mod 11."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        rest = _weighted(digits[:length], tuple(range(length + 1, 1, -1))) * 10 % 11 % 10
        if rest != int(digits[length]):
            return False
    return True


def is_french_id(digits: str) -> bool:
    """NIR: 13 digits and a key, 97 minus the number mod 97 (metropolitan departments)."""
    return digits[0] in "12" and 97 - int(digits[:13]) % 97 == int(digits[13:])


def is_polish_id(digits: str) -> bool:
    """PESEL: a date whose month tells the century, and a check digit, mod 10."""
    century, month = divmod(int(digits[2:4]), 20)
    if century > 4 or not is_date((1900, 2000, 2100, 2200, 1800)[century] + int(digits[:2]), month, int(digits[4:6])):
        return False
    return (10 - _weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10) % 10 == int(digits[10])


def is_swedish_id(digits: str) -> bool:
    """Personnummer: a date (the day plus 60 for coordination numbers) and four digits, Luhn over the ten."""
    day = int(digits[4:6])
    return is_date(2000 + int(digits[:2]), int(digits[2:4]), day - 60 if day > 60 else day) and is_luhn(digits)


def is_finnish_id(text: str) -> bool:
    """Henkilötunnus: date, sign of the century, three digits, a check character, mod 31."""
    if not is_date(2000 + int(text[4:6]), int(text[2:4]), int(text[:2])):
        return False
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(text[:6] + text[7:10]) % 31] == text[10].upper()


def is_korean_id(digits: str) -> bool:
    """Resident registration number of people registered before October 2020: date, and a check digit, mod 11."""
    if not is_date(2000 + int(digits[:2]), int(digits[2:4]), int(digits[4:6])):
        return False
    return (11 - _weighted(digits, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10 == int(digits[12])


def is_indian_id(digits: str) -> bool:
    """Aadhaar: twelve digits, the last by Verhoeff's scheme."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = _DIHEDRAL[check][_VERHOEFF[place % 8][int(digit)]]
    return check == 0


def _dihedral(a: int, b: int) -> int:
    """Product in the dihedral group of order ten."""
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b) % 5 + 5
    return (a - b) % 5 + 5 if b < 5 else (a - b) % 5


_DIHEDRAL = [[_dihedral(a, b) for b in range(10)] for a in range(10)]
_VERHOEFF = [list(range(10))]
for _ in range(7):
    _VERHOEFF.append([_VERHOEFF[-1][(1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]] for digit in range(10)])
