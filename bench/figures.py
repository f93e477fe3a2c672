#!/usr/bin/env python3
"""Figures of one broker that need more than one run: ratios by turns, starts, idle time. Loopback only, Linux only.

    bench/figures.py [--ringlog BINARY] [--data DIR] [--rounds N] [--seconds S] FIGURE

    partitions          throughput with 1, 10, 100, 1,000 partitions on one shard, the same requests in flight
    idle [COUNT]        processor time of an idle broker in a minute: 1 partition and COUNT (10,000)
    start [COUNT]       how long a start takes with COUNT (10,000) partitions: after an orderly end and after kill -9
    kept [GB]           produce and consume with 1 GB and with GB (8) kept
    before OTHER        the loads of docs/TESTING.md with BINARY and with another build of it

The broker runs on core 0, the load on core 1, on fresh data below DIR, a directory on a real disk. Prints a line per
run, then medians and ratios. A busy machine gives figures of that machine.
"""

import argparse, json, os, shutil, signal, statistics, subprocess, sys, tempfile, time

TICKS = os.sysconf("SC_CLK_TCK")


class Broker:
    """A broker of one shard with its data; `ready` is how many seconds its start took."""

    def __init__(self, binary, data):
        self.binary, self.data = binary, data
        command = [binary, "serve", "--data", data, "--listen", "127.0.0.1:0", "--shards", "1", "--cores", "0"]
        began = time.monotonic()
        # Older builds do not know profiles; without one all take the same defaults.
        if "--disk-profile" in subprocess.run([binary, "serve", "--help"], capture_output=True, text=True).stdout:
            command += ["--disk-profile", "none"]
            began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "RINGLOG_LOG": "error"})
        for line in self.process.stdout:
            if line.startswith("ready "):
                self.address = line.split()[1]
                break
        else:
            sys.exit("figures.py: the broker did not start")
        self.ready = time.monotonic() - began

    def run(self, *words):
        ran = subprocess.run([self.binary, *words, "--brokers", self.address], capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"figures.py: {' '.join(words)}: {ran.stderr}")
        return ran.stdout

    def load(self, *words):
        return json.loads(self.run("bench", "load", "--client-core", "1", "--format", "json", *words).splitlines()[-1])

    def cpu(self):
        """Seconds of processor time so far."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()
        self.process.stdout.close()


def fresh(arguments):
    return tempfile.mkdtemp(prefix="ringlog-figures-", dir=arguments.data)


def show(title, figures, base, unit):
    print(f"\n{title}")
    of = statistics.median(figures[base])
    for name, values in figures.items():
        median = statistics.median(values)
        print(f"  {name:>28}  {median:12,.1f} {unit}  [{min(values):,.1f} - {max(values):,.1f}]  {median / of:.2f}x")


def partitions(arguments):
    counts = [1, 10, 100, 1000]
    data = fresh(arguments)
    broker = Broker(arguments.ringlog, data)
    figures = {count: [] for count in counts}
    for turn in range(arguments.rounds):
        for count in counts:
            report = broker.load(
                "--topic", f"of-{count}", "--partitions", str(count), "--connections", "64", "--records-per-request", "10",
                "--seconds", str(arguments.seconds), "--warmup", "6", "--keep", "--retention-bytes", "100000000",
            )
            print(f"round {turn}, {count} partitions: {report['requests_s']:,.0f} requests/s, p50 {report['p50_us']:.0f} us, "
                  f"p99 {report['p99_us']:.0f} us, refused {report['refused']}", flush=True)
            figures[count].append(report["requests_s"])
    broker.end()
    shutil.rmtree(data)
    show("64 requests of 10 x 1,000 B in flight, partitions of one shard in turn", figures, 1, "requests/s")


def with_partitions(arguments, count, filled=True):
    data = fresh(arguments)
    broker = Broker(arguments.ringlog, data)
    began = time.monotonic()
    broker.run("topic", "create", "many", "--partitions", str(count))
    print(f"{count} partitions made in {time.monotonic() - began:.1f} s", flush=True)
    if filled:
        # About ten records in each.
        lanes = min(64, count)
        broker.load("--topic", "many", "--connections", str(lanes), "--records-per-request", "10",
                    "--seconds", "6", "--warmup", "0")
    return broker


def idle(arguments):
    figures = {}
    for count in [1, arguments.number or 10_000]:
        broker = with_partitions(arguments, count)
        # Until nothing is left to be done behind the load.
        time.sleep(45)
        before = broker.cpu()
        time.sleep(60)
        figures[f"{count} partitions"] = [(broker.cpu() - before) * 1000]
        broker.end()
        shutil.rmtree(broker.data)
    show("processor time of an idle broker in 60 s", figures, "1 partitions", "ms")


def start(arguments):
    count = arguments.number or 10_000
    broker = with_partitions(arguments, count)
    ends = {"after an orderly end": signal.SIGTERM, "after kill -9 behind a load": signal.SIGKILL}
    figures = {"empty data": [broker.ready * 1000], **{name: [] for name in ends}}
    for turn in range(arguments.rounds):
        for name, how in ends.items():
            broker.load("--topic", "many", "--connections", str(min(64, count)), "--records-per-request", "10",
                        "--seconds", "3", "--warmup", "0")
            broker.end(how)
            broker = Broker(arguments.ringlog, broker.data)
            print(f"round {turn}, {name}: {broker.ready * 1000:,.0f} ms", flush=True)
            figures[name].append(broker.ready * 1000)
    broker.end()
    shutil.rmtree(broker.data)
    show(f"from the start of the process to `ready`, {count} partitions", figures, "empty data", "ms")


def kept(arguments):
    sizes = [1, arguments.number or 8]
    data = fresh(arguments)
    broker = Broker(arguments.ringlog, data)
    produced, consumed = ({f"{size} GB kept": [] for size in sizes} for _ in range(2))
    for turn in range(arguments.rounds):
        for size in sizes:
            topic = ["--topic", f"kept-{size}", "--keep", "--retention-bytes", str(size * 10**9), "--fill-bytes", str(size * 10**9)]
            run = ["--in-flight", "4", "--warmup", "1", "--seconds", str(arguments.seconds)]
            name = f"{size} GB kept"
            # The first makes the topic, and fills it.
            consumed[name].append(broker.load("--mode", "consume", *topic, *run)["mb_s"])
            produced[name].append(broker.load("--mode", "produce", *topic, *run)["mb_s"])
            print(f"round {turn}, {name}: consumed {consumed[name][-1]:,.0f}, produced {produced[name][-1]:,.0f} MB/s", flush=True)
    broker.end()
    shutil.rmtree(data)
    show("produce 1,000 x 1,000 B, 4 in flight", produced, f"{sizes[0]} GB kept", "MB/s")
    show("consume the same, 4 in flight", consumed, f"{sizes[0]} GB kept", "MB/s")


def before(arguments):
    loads = {
        "1 in flight, MB/s": (["--retention-bytes", "600000000"], "mb_s"),
        "4 in flight, MB/s": (["--retention-bytes", "600000000", "--in-flight", "4"], "mb_s"),
        "64 x 1 x 100 B, requests/s": (["--records-per-request", "1", "--record-bytes", "100", "--connections", "64"], "requests_s"),
        "consume, 1 in flight, MB/s": (["--mode", "consume"], "mb_s"),
        "consume, 4 in flight, MB/s": (["--mode", "consume", "--in-flight", "4"], "mb_s"),
    }
    builds = {"before": arguments.other, "after": arguments.ringlog}
    figures = {name: {build: [] for build in builds} for name in loads}
    for turn in range(arguments.rounds):
        for name, (words, figure) in loads.items():
            # Who is first changes.
            for build in list(builds)[:: 1 if turn % 2 == 0 else -1]:
                data = fresh(arguments)
                broker = Broker(builds[build], data)
                report = broker.load(*words, "--warmup", "1", "--seconds", str(arguments.seconds))
                broker.end()
                shutil.rmtree(data)
                figures[name][build].append(report[figure])
                print(f"round {turn}, {build}: {name} {report[figure]:,.0f}, p50 {report['p50_us']:.0f} us, "
                      f"p99 {report['p99_us']:.0f} us", flush=True)
    for name, builds in figures.items():
        show(name, builds, "before", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ringlog", default="target/release/ringlog")
    parser.add_argument("--data", default=".")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    commands = parser.add_subparsers(dest="figure", required=True)
    for figure in [partitions, idle, start, kept]:
        commands.add_parser(figure.__name__).add_argument("number", nargs="?", type=int)
    commands.add_parser("before").add_argument("other")
    arguments = parser.parse_args()
    globals()[arguments.figure](arguments)


main()
