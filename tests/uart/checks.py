from __future__ import annotations
import os, asyncio, fcntl, termios, struct, glob, time
CHECKS = {}
async def look(host):
    out = [*glob.glob("/dev/ttyS?"), *glob.glob("/dev/ttyU*"), *glob.glob("/dev/ttyA*"), *glob.glob("/dev/ttyGS*")]
    t=time.monotonic()
    import fdtransport
    out.append(f"import {time.monotonic()-t:.1f}")
    print(open("/proc/tty/driver/serial").read())
    return " ".join(out)
CHECKS["look"] = look
async def acm(host):
    a = os.open("/dev/ttyACM0", os.O_RDWR|os.O_NOCTTY|os.O_NONBLOCK)
    def get():
        return hex(struct.unpack("I", fcntl.ioctl(a, termios.TIOCMGET, bytes(4)))[0])
    def count():
        return struct.unpack("20i", fcntl.ioctl(a, 0x545D, bytes(80)))
    o=[get(), count()]
    g = os.open("/dev/ttyGS0", os.O_RDWR|os.O_NOCTTY|os.O_NONBLOCK)
    await asyncio.sleep(0.3)
    o+=[get(), count()]
    def wait():
        t=time.monotonic()
        fcntl.ioctl(a, 0x545C, termios.TIOCM_CD)
        return time.monotonic()-t
    w = asyncio.create_task(asyncio.to_thread(wait))
    await asyncio.sleep(0.5)
    fcntl.ioctl(g, 0x5427); await asyncio.sleep(0.2); fcntl.ioctl(g, 0x5428); await asyncio.sleep(0.2)
    o+=["brk", count()]
    os.close(g)
    o+=["wait", await w]
    o+=[get(), count()]
    os.close(a)
    return repr(o)
CHECKS["acm"] = acm
async def unplug(host):
    print(os.listdir("/dev/serial/by-id") if os.path.exists("/dev/serial") else "no by-id")
    u = os.open("/dev/ttyUSB0", os.O_RDWR|os.O_NOCTTY|os.O_NONBLOCK)
    r=[await host.ask("unplug")]
    for i in range(100):
        await asyncio.sleep(0.05)
        try:
            d = os.read(u, 10)
        except BlockingIOError: continue
        except OSError as e: d = e
        break
    r.append((i, d, os.path.exists("/dev/ttyUSB0")))
    os.close(u)
    r.append(await host.ask("plug"))
    t=time.monotonic()
    while not os.path.exists("/dev/ttyUSB0"): await asyncio.sleep(0.05)
    r.append(time.monotonic()-t)
    return repr(r)
CHECKS["unplug"] = unplug
