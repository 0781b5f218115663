"""Named chat templates, for tokenizers that have none or another one."""

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATES = {
    "vicuna_v1.1": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% else %}" + _VICUNA_SYSTEM + "{% endif %}{{ ' ' }}"
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        "{% else %}Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '\n\n### Instruction:\n' + m['content'] + '\n\n### Response:\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
        "{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
        "{{ m['content'] + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
}
"""Named chat templates.

Source: vicuna_v1.1: Zheng et al. 2023, FastChat's ``conversation.py`` (two separators, a space and
the eos token); alpaca: Taori et al. 2023, Stanford Alpaca's prompt without input; llama3: Meta
2024, ``ChatFormat`` of the llama3 repository, without its stripping of contents.
"""
