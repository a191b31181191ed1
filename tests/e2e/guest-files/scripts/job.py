"""Modules of Python's own library, and two of other packages."""
import argparse
import asyncio
import email.message
import html.parser
import logging.handlers
import sqlite3
import unittest
import urllib.request
import xml.etree.ElementTree

import jinja2
import yaml

said = yaml.safe_load("{name: guest, numbers: [1, 2, 3]}")
print(jinja2.Template("{{ name }} {{ numbers | sum }}").render(**said))
