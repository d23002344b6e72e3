"""Raw words of a shell script: quotes, comments, continuations and separators, nothing expanded."""

from __future__ import annotations


def statements(text: str) -> list[tuple[int, list[str], str]]:
    """(line, raw words, what joins it to the next) of every statement.

    Quotes stay in the words, continuations are joined.
    """
    found: list[tuple[int, list[str], str]] = []
    words: list[str] = []
    word, quote, depth, line, at = "", "", 0, 1, 0
    is_open = False

    def close_word() -> None:
        nonlocal word, is_open
        if word or is_open:
            words.append(word)
        word, is_open = "", False

    while at < len(text):
        char = text[at]
        after = text[at + 1 : at + 2]
        line += char == "\n"
        if quote:
            word += char
            if char == "\\" and quote == '"':
                word += after
                at += 1
            elif char == quote:
                quote = ""
        elif char == "\\" and after == "\n":
            line += 1
            at += 1
            if depth:
                word += " "
            else:
                close_word()
        elif char == "\\":
            word += char + after
            at += 1
        elif char in "'\"":
            quote, is_open = char, True
            word += char
        elif char == "#" and (not word or (depth and word[-1] in " \n(")):
            while at + 1 < len(text) and text[at + 1] != "\n":
                at += 1
        elif char in "({":
            depth += bool(word) or depth > 0
            word += char
        elif char in ")}" and depth:
            depth -= 1
            word += char
        elif depth:
            word += char
        elif char in " \t":
            close_word()
        elif char in "\n;|&":
            close_word()
            if words:
                found.append((line - (char == "\n"), words, char + after if char == after else char))
            words = []
        else:
            word += char
        at += 1
    close_word()
    return [*found, (line, words, "")] if words else found


def split_array(text: str) -> list[str]:
    """Raw words of an array's inside: line ends separate like blanks."""
    return [word for _, words, _ in statements(text.replace("\n", " ")) for word in words]
