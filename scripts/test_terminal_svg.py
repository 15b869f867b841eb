"""Tests of scripts/terminal-svg: run with python3 -m unittest discover scripts."""

import importlib.machinery
import importlib.util
import pathlib
import subprocess
import sys
import unittest
import xml.etree.ElementTree

SCRIPT = pathlib.Path(__file__).with_name("terminal-svg")


def load():
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("terminal_svg", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("terminal_svg", loader))
    loader.exec_module(module)
    return module


class TerminalSvg(unittest.TestCase):
    def test_colours_are_the_terminal_s(self):
        svg = load()
        self.assertEqual([svg.colour(code) for code in (16, 34, 231, 232)], ["#000000", "#00af00", "#ffffff", "#080808"])
        self.assertEqual(svg.style_after((None, False, False), "1;38;5;34"), ("#00af00", False, True))
        self.assertEqual(svg.style_after(("#00af00", True, True), "0"), (None, False, False))

    def test_lines_break_where_the_terminal_breaks_them(self):
        lines = load().lines_of("abc\x1b[38;5;34mde\x1b[0m\nf", 4)
        self.assertEqual(["".join(text for _, text in line) for line in lines], ["abcd", "e", "f"])
        self.assertEqual(lines[1][0][0][0], "#00af00")

    def test_a_picture_is_sound_xml_whatever_was_written(self):
        text = b"a <b> & \x1b]0;title\x07\x1b[2J\x1b[38;5;166m  c\x1b[0m \xff\r\n\x1b"
        drawn = subprocess.run([sys.executable, SCRIPT, "--title", "<&>"], input=text, capture_output=True, check=True)
        picture = xml.etree.ElementTree.fromstring(drawn.stdout)
        shown = "".join(picture.itertext()).replace("\xa0", " ")
        self.assertIn("a <b> &   c", shown)
        self.assertNotIn("title", shown)


if __name__ == "__main__":
    unittest.main()
