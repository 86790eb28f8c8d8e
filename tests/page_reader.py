"""Reads an HTML page as a strict browser would."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page whose tags must be closed in order; text inside of details apart."""

    def __init__(self, source, notes=()):
        super().__init__()
        self.source, self.notes = source, notes
        self.open, self.tags, self.addresses = [], [], []
        self.text = self.folded = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "details" in self.open:
            self.folded += data
        elif "style" not in self.open:
            self.text += data + " "

    def count(self, tag):
        return self.tags.count(tag)
