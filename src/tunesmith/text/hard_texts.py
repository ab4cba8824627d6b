"""Texts on which tokenizers part ways: scripts, marks, blanks, digits, code, control characters, very long words."""

from __future__ import annotations

SCRIPTS = (
    "The quick brown fox can't jump; it's 3 o'clock, we'll see, they'd say I'M FINE, YOU'RE not.",  # Latin
    "Größe, naïve façade, Łódź, Çağrı, ǅungla, ﬁne ﬂow, ſtraße, İstanbul ıssız, Đà Nẵng, œuvre.",
    "Ελληνικά: Ὁ βίος βραχύς, ἡ δὲ τέχνη μακρή· τελικό ς.",  # Greek
    "Русский язык: съешь ещё этих мягких булок; Ѳита, Ꙗко, ґанок.",  # Cyrillic
    "العربيّة: مَرْحَبًا بالعالَم، ٠١٢٣٤٥٦٧٨٩؟ لا إله… ﷺ",  # Arabic
    "עברית: שָׁלוֹם עוֹלָם, 'זה' מבחן־קטן.",  # Hebrew
    "हिन्दी: नमस्ते दुनिया, क्षत्रिय ज्ञान १२३ श्री।",  # Devanagari
    "বাংলা: আমি বাংলায় গান গাই, ক্ষুধা ৪৫৬।",  # Bengali
    "தமிழ்: வணக்கம் உலகம், ஸ்ரீ ௧௨௩.",  # Tamil
    "తెలుగు: నమస్కారం ప్రపంచం, క్ష్మా.",  # Telugu
    "ไทย: สวัสดีชาวโลก น้ำ ๑๒๓ กำลังทดสอบ",  # Thai
    "ພາສາລາວ: ສະບາຍດີ ໂລກ",  # Lao
    "မြန်မာ: မင်္ဂလာပါ ကမ္ဘာ ၁၂၃",  # Burmese
    "ខ្មែរ: សួស្តីពិភពលោក ១២៣",  # Khmer
    "中文：你好，世界！繁體與简体，〇一二三，『引號』。",  # Han
    "日本語：こんにちは世界、カタカナ、ｶﾅ、゛゜、東京タワー２０２４年。",  # Kana
    "한국어: 안녕하세요 세계, 갂갃, 각 각",  # Hangul, jamo too
    "ქართული: გამარჯობა მსოფლიო; Ა Ბ.",  # Georgian
    "Հայերեն: Բարեւ աշխարհ, և։",  # Armenian
    "አማርኛ: ሰላም ዓለም ፩፪፫።",  # Ethiopic
    "བོད་སྐད།: བཀྲ་ཤིས་བདེ་ལེགས།",  # Tibetan
    "ᠮᠣᠩᠭᠣᠯ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⵜⴰⵎⴰⵣⵉⵖⵜ 𐤀𐤁𐤂 𓀀𓀁 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀𒁀",  # rare ones, beyond the basic plane
)
SIGNS = (
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷🇬 ❤️‍🔥 1️⃣ #️⃣ ☎︎☎️ 🫠",
    "e\u0301 \u0301e a\u0323\u0302 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞a̴l̷g̸o̵ \u200dx\u200cy\u200b",
    "\u202eright to left\u202c \u2066isolate\u2069 \ufeffmark \u00ad soft\u00adhyphen",
    "“quotes” ‘single’ ’tis don’t it’s – — … ‹› «» ¿¡ § ¶ † ‡ • ‰ ′ ″ ⁂",
    "∑∞∂∇ ≠≤≥ ½¾⅓ x²⁺ⁿ H₂O ℝ→ℂ ⟨ψ|φ⟩ Ⅷ ⅷ ①⑳ ㊀ ㏒ ﹪ Ａ１！",
    "\ue000\uf8ff \ufffd\ufffe\uffff \U0010ffff \U000e0041",
)
NUMBERS = (
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-10 0x1F 2024-01-31T23:59:59Z +49 (0)30",
    "1234a5678b９９ ٣٤٥ १२३४ 1st 22nd v1.2.3 10% $5 €6.50 ½1 1½",
)
BLANKS = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " \n",
    "\n ",
    " \n \n  \n",
    "a  b   c    d        e                e",
    "a\tb\t\tc\t d \te",
    "a\nb\n\nc\n\n\nd\r\ne\rf \n g\n h",
    "  lead",
    "\n\nlead",
    "trail  ",
    "trail\n\n",
    "x\u00a0y\u2003z\u3000w\u2028v\u2029u\u0085t\x1cs\x0br\x0cq\u1680p",
    " " * 300 + "x" + "\n" * 100 + "y" + "\t" * 50,
)
CODE = (
    "def f(x: int) -> str:\n    if x > 0:\n        return f\"{x!r:>10}\\n\"\n\n    # done\n\treturn ''\n",
    "for(int i=0;i<n;++i){a[i]+=b[i]<<2;}//x\n/* y */ #include <stdio.h>\n",
    "SELECT * FROM t WHERE a='it''s' AND b<>\"c\";--",
    '{"key": [1, 2.0, null], "nested": {"a\\"b": "\\u00e9"}}',
    '<div class="a b">&nbsp;<br/></div><!-- --> <s> </s> <unk> <pad> <0x0A> [INST] [/INST] <<SYS>> ▁ ▁▁x Ġx Ċ',
    "$\\frac{a}{b}$ \\begin{align*} x &= y \\\\ \\end{align*}",
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@mail.example.org C:\\dir\\file.txt ../x/~y",
    "!!!??? ... ,,, ;;; ''' \"\"\" ``` ### *** ___ --- === ~~~ ||| @@@ ^^^ ((( ))) [[[ ]]] {{{ }}} <<< >>>",
    "camelCaseAndHTTPServer snake_case_name SCREAMING_CASE kebab-case-name x'y x's 'S 'Ll 'VE",
)
CONTROL = (
    "a\x00b\x01c\x02\x07\x08\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "".join(map(chr, range(1, 256))),
    "<|im_start|>user\n<|im_end|> <|endoftext|> <|eot_id|> <start_of_turn> <think>\n\n</think> <|im_start <| |> |>",
)
LONG = (
    "a" * 700,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 4,
    "abcdefghijklmnopqrstuvwxyz0123456789" * 20,
    "世界" * 200,
    "ab" * 300 + " " + "=" * 300 + "ha" * 200 + "🎉" * 60,
    "1" * 400,
)

HARD = (*SCRIPTS, *SIGNS, *NUMBERS, *BLANKS, *CODE, *CONTROL, *LONG)
