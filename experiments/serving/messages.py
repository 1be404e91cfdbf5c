"""The messages of a request as a conversation."""

from typing import Any

from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.conversation import Conversation
from tsi.experiments.serving.fields import check_text, name_type

SYSTEM_ROLES = ("system", "developer")
MAX_MESSAGES = 256
ORDER = (
    "messages must be: at most one of system, then user and assistant in turn, and the "
    "last one of the user"
)


def parse_messages(value: Any) -> Conversation:
    """The conversation of the field ``messages``.

    Raises:
        ApiError: it is not an array of messages with a role and text, in an order that
            has a question at the end.
    """
    if not isinstance(value, list) or not value:
        raise ApiError(
            f"messages must be an array of messages, not "
            f"{'empty' if value == [] else name_type(value)}.",
            param="messages",
        )
    if len(value) > MAX_MESSAGES:
        raise ApiError(
            f"messages has {len(value):,} messages; send at most {MAX_MESSAGES}.",
            param="messages",
        )
    texts = [_parse_message(message, i) for i, message in enumerate(value)]
    system = None
    if texts[0][0] in SYSTEM_ROLES:
        system = texts.pop(0)[1]
    for i, (role, text) in enumerate(texts):
        name = f"messages[{i + (system is not None)}]"
        expected = "assistant" if i % 2 else "user"
        if role != expected:
            raise ApiError(f"{name} is of {role}; {ORDER}.", param=name)
        if role == "user" and not text.strip():
            raise ApiError(f"{name} is empty; write a question.", param=name)
    if not len(texts) % 2:
        raise ApiError(
            f"The last message is not a question; {ORDER}.", param="messages"
        )
    contents = [text for _, text in texts]
    *earlier, question = contents
    turns = zip(earlier[::2], earlier[1::2], strict=True)
    return Conversation(question, system, tuple(turns))


def _parse_message(message: Any, index: int) -> tuple[str, str]:
    """Role and text."""
    name = f"messages[{index}]"
    if not isinstance(message, dict):
        raise ApiError(
            f"{name} must be an object with role and content, not "
            f"{name_type(message)}.",
            param=name,
        )
    role = message.get("role")
    if role not in (*SYSTEM_ROLES, "user", "assistant"):
        excerpt = f"{role:.40}" if isinstance(role, str) else name_type(role)
        raise ApiError(
            f"{name}.role is {excerpt.encode('ascii', 'backslashreplace').decode()}; "
            "roles are system, user and assistant, since this server has no tools.",
            param=f"{name}.role",
        )
    if message.get("tool_calls") or message.get("function_call"):
        raise ApiError(f"{name} has tool calls; this server has no tools.", param=name)
    return role, _parse_content(message.get("content"), f"{name}.content")


def _parse_content(content: Any, name: str) -> str:
    """A text, or the lines of a list of text parts."""
    if not isinstance(content, list):
        return check_text(content, name)
    texts = []
    for i, part in enumerate(content):
        place = f"{name}[{i}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ApiError(
                f"{place} is not a text part, such as "
                '{"type": "text", "text": "..."}; this server reads text only.',
                param=place,
            )
        texts.append(check_text(part.get("text"), f"{place}.text"))
    return "\n".join(texts)
