"""What crosses a process border: ids, states, records, messages, their codec, and the three doors of the SuperLink."""
