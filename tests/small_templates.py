"""Small chat templates in the manner of eight families, written for these tests, each with its `{% generation %}`-marked sibling.

In the sources `«` and `»` stand where the sibling has its marks, and nothing in the plain template.
"""

from __future__ import annotations

SOURCES = {
    # ChatML with thinking that earlier turns lose, tools and tool calls.
    "chatml": (
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}Tools:\n"
        "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
        "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n«"
        "{% set content = m.content %}{% set thought = m.reasoning_content %}"
        "{% if not thought and '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if thought and loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ content }}"
        "{% for c in m.tool_calls or [] %}\n<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
        "<|im_end|>»\n"
        "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
        "{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # No generation prompt: the answer begins with the blank behind [/INST].
    "llama2": (
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ (system if loop.first else '') + m.content.strip() }} [/INST]"
        "{% elif m.role == 'assistant' %}« {{ m.content.strip() }} {{ eos_token }}»{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
        "{% if m.role == 'assistant' %}«{% if m.tool_calls %}{\"name\": \"{{ m.tool_calls[0].function.name }}\", \"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}"
        "{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>»{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    # Tools stand before the last user turn: they move as the chat grows. Calls need ids of nine letters.
    "mistral": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
        "[INST]{{ m.content }}[/INST]{% elif m.role == 'assistant' %}«{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% if (c.id or '') | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}»"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% else %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{% if (m.role == 'assistant') == (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{% if m.role == 'assistant' %}«{{ m.content | trim }}<end_of_turn>\n»"
        "{% else %}{{ m.content | trim }}<end_of_turn>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    # The end of the text stands behind the last turn only.
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}«{{ m.content }}<|end|>»\n{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    # Arguments are joined as text; thinking of a content is dropped; a call has no blank before it.
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<｜Assistant｜>«{{ m.content.split('</think>')[-1] }}{% for c in m.tool_calls or [] %}<｜tool▁call▁begin｜>{{ c.function.name + '\n' + c.function.arguments }}<｜tool▁call▁end｜>{% endfor %}<｜end▁of▁sentence｜>»"
        "{% else %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
    ),
    # Nothing closes a turn but the next one's opening.
    "glm": (
        "[gMASK]<sop>{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>«\n<think>{{ m.reasoning_content or '' }}</think>\n{{ m.content.strip() }}"
        "{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}»"
        "{% elif m.role == 'tool' %}<|observation|>\n{{ m.content }}{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}  # fmt: skip


def plain(name: str) -> str:
    return SOURCES[name].replace("«", "").replace("»", "")


# The marked sibling of a template whose turns nothing closes prints the next opening inside the marks.
_NEXT = (
    "{% if not loop.last and messages[loop.index0 + 1].role == 'tool' %}<|observation|>{% else %}<|user|>{% endif %}»"
)
_UNOPENED = "{% if loop.first or messages[loop.index0 - 1].role != 'assistant' %}"
OPENED_WITHIN = (
    ("»", _NEXT),
    ("<|observation|>\n{{ m.content }}", _UNOPENED + "<|observation|>{% endif %}{{ '\\n' + m.content }}"),
    ("<|{{ m.role }}|>\n{{ m.content }}", _UNOPENED + "<|{{ m.role }}|>{% endif %}{{ '\\n' + m.content }}"),
)


def marked(name: str) -> str:
    source = SOURCES[name]
    for old, new in OPENED_WITHIN if name == "glm" else ():
        source = source.replace(old, new)
    source = source.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")
    return source.replace("generation %}\n", "generation %}{{ '\\n' }}")  # Jinja drops a line end behind a block
