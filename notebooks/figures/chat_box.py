"""A chat to type into, in JupyterLab: what was said above, a line below; it streams, stops and
starts anew.
"""

import html
import threading

from ipywidgets import HTML, Box, Button, HBox, Layout, Text, VBox

from figures.chat import WHO


LOOK = "white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.45; color:black; border-radius:8px;"
PLACE = {"user": "margin:4px 4px 4px 22%;", "assistant": "margin:4px 22% 4px 4px;"}


def bubble(role: str, text: str) -> str:
    """One message. What was said is text: a tag in it is shown, not obeyed."""
    look = f"{LOOK} {PLACE[role]} background:{WHO[role]}; padding:6px 10px;"
    return f'<div class="{role}" style="{look}">{html.escape(text) or "&hellip;"}</div>'


def note(text: str) -> str:
    return f'<div class="note" style="margin:4px; text-align:center; color:#767676">{html.escape(text)}</div>'


class ChatBox(VBox):
    """answer(messages) -> (messages kept, messages dropped, pieces of the reply); ValueError if
    there is no room.

    The reply is made in a thread: while the kernel is busy in a cell or a callback, no click on
    Stop would arrive.
    """

    def __init__(self, answer):
        self.answer, self.messages, self.thread = answer, [], threading.Thread()
        self.stop = threading.Event()
        grow = Layout(flex="0 0 auto", width="auto", margin="0")
        self.said, self.saying = HTML(layout=grow), HTML(layout=grow)
        look = dict(
            border="1px solid #bbbbbb",
            padding="4px",
            height="24em",
            overflow="auto",
            display="flex",
        )
        # reversed: it shows its end, also while it grows
        log = Layout(flex_flow="column-reverse nowrap", **look)
        log = Box([VBox([self.said, self.saying], layout=grow)], layout=log)
        self.line = Text(
            placeholder="Ask something, then press Enter", layout=Layout(flex="1", width="auto")
        )
        self.button = Button(description="Send", button_style="primary", layout=Layout(width="7em"))
        self.anew = Button(description="New chat", layout=Layout(width="7em"))
        # subtle: `value` changes when the line loses the focus too, and a click elsewhere is no
        # wish to send
        self.line.on_msg(
            lambda line, content, buffers: content.get("event") == "submit" and self.send()
        )
        self.button.on_click(
            lambda button: self.stop.set() if self.thread.is_alive() else self.send()
        )
        self.anew.on_click(lambda button: self.reset())
        super().__init__(
            [log, HBox([self.line, self.button, self.anew])], layout=Layout(max_width="46em")
        )

    def send(self):
        """Send the line, unless it is empty or an answer is still being written."""
        text = self.line.value.strip()
        if text and not self.thread.is_alive():
            self.line.value = ""
            self.said.value += bubble("user", text)
            self.stop.clear()
            self.button.description, self.button.button_style = "Stop", "warning"
            self.thread = threading.Thread(target=self.reply, args=(text,), daemon=True)
            self.thread.start()

    def reply(self, text: str):
        """Stream the answer; what was said until Stop is kept. A question that cannot be answered
        is not.
        """
        said = ""
        try:
            kept, dropped, pieces = self.answer([*self.messages, {"role": "user", "content": text}])
            if dropped:
                self.said.value += note(
                    f"the {len(dropped)} oldest messages no longer fit and are forgotten"
                )
            for piece in pieces:
                said += piece
                self.saying.value = bubble("assistant", said)
                if self.stop.is_set():
                    break
            self.messages = [*kept, {"role": "assistant", "content": said}]
            self.said.value += bubble("assistant", said) + note("stopped") * self.stop.is_set()
        except ValueError as error:
            self.said.value += note(str(error))
        finally:
            self.saying.value = ""
            self.button.description, self.button.button_style = "Send", "primary"

    def reset(self):
        """Forget everything, an answer that is still being written included."""
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join()
        self.messages, self.said.value = [], ""
