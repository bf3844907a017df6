"""A real UART without hardware: the library inside a virtual machine that has serial ports.

    python tests/uart [CHECK ...]
    python -m pytest -n 0 -m uart tests/test_uart.py

A terminal pair has no modem lines, no parity, no break and no counters, and cannot be unplugged. A machine in
software emulation (qemu, no KVM, no root) has all of them: 16550A ports, a USB port of FTDI that is unplugged
and plugged in again, and a USB gadget whose line state moves. About a minute, most of it the start.

    packages.py   what it needs of Debian's packages, unpacked into a cache and not installed
    image.py      the file system of the guest: busybox, kernel modules, this Python, this library
    machine.py    qemu, what the guest may ask for, and what it reports
    guest.py      the same from inside
    checks.py     what is checked there
"""
