"""Rooms: what is sent to one is delivered to all its clients, one message after the other."""
