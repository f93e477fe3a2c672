#!/usr/bin/env python3
"""Figures that need more than one run: ratios by turns, starts, idle time; three brokers. Loopback only, Linux only.

    bench/figures.py [--ringlog BINARY] [--data DIR] [--rounds N] [--seconds S] FIGURE

    partitions          throughput with 1, 10, 100, 1,000 partitions on one shard, the same requests in flight
    idle [COUNT]        processor time of an idle broker in a minute: 1 partition and COUNT (10,000)
    start [COUNT]       how long a start takes with COUNT (10,000) partitions: after an orderly end and after kill -9
    kept [GB]           produce and consume with 1 GB and with GB (8) kept
    before OTHER        the loads of docs/TESTING.md with BINARY and with another build of it
    upgrade OTHER       three brokers of another build become BINARY's, one at a time: what a producer and a reader see of it
    cluster PART        three brokers on this host, their disk and cores shared with each other and with the load
        acks            throughput and p99 with acks=1 and acks=all, and of one broker alone, by turns
        slow            acknowledge p99 with one follower's disk held to a tenth of what it is asked for (needs root)
        return          p99 of live traffic while a broker that was away catches up
        failover        from kill -9 of the leader to the first record acknowledged by the next one
        move            a partition of 60 MB moves from broker to broker at rates that are set, and at none

One broker runs on core 0, the load on core 1; three run wherever the kernel puts them; on fresh data below DIR, a directory on a real disk. Prints a line per
run, then medians and ratios. A busy machine gives figures of that machine.
"""

import argparse, atexit, json, os, re, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time

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

    def counter(self, name):
        return int(re.search(rf'"{name}":\s*(\d+)', self.run("status", "--format", "json")).group(1))

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
    if arguments.data:
        os.makedirs(arguments.data, exist_ok=True)
    return tempfile.mkdtemp(prefix="ringlog-figures-", dir=arguments.data)


def show(title, figures, base, unit):
    print(f"\n{title}")
    of = statistics.median(figures[base])
    for name, values in figures.items():
        if not values:
            print(f"  {name:>28}  not measured")
            continue
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
        # Until nothing is left to be done behind the load: the first reading of all that is stored begins after a minute.
        began = time.monotonic()
        while not broker.counter("scrub_passes_total"):
            time.sleep(5)
        print(f"all that is stored read once, {time.monotonic() - began:.0f} s behind the load", flush=True)
        time.sleep(15)
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


class Member(Broker):
    """A broker of a cluster, on any core; `words` are more settings."""

    def __init__(self, binary, data, number, port, join=None, words=()):
        self.binary, self.data, self.number, self.port = binary, data, number, port
        self.words, self.address = words, f"127.0.0.1:{port}"
        self.begin(join)

    def begin(self, join=None):
        command = [self.binary, "serve", "--data", self.data, "--listen", self.address, "--shards", "1", "--cores", "none",
                   "--disk-profile", "none", "--broker-id", str(self.number), *self.words]
        command += ["--join", join] if join else []
        with open(self.data + ".log", "a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        atexit.register(self.process.kill)
        if not any(line.startswith("ready ") for line in self.process.stdout):
            sys.exit(f"figures.py: broker {self.number} did not start")


class Cluster:
    """Three brokers, numbered from 1; whole when this returns."""

    def __init__(self, arguments, words=()):
        self.data, self.members = fresh(arguments), []
        for number in 1, 2, 3:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            join = self.members[0].address if self.members else None
            data = os.path.join(self.data, str(number))
            self.members.append(Member(arguments.ringlog, data, number, port, join, words))
        self.address = ",".join(member.address for member in self.members)
        self.whole()

    def run(self, *words):
        ran = subprocess.run([self.members[0].binary, *words, "--brokers", self.address], capture_output=True, text=True)
        return ran.stdout if ran.returncode == 0 else sys.exit(f"figures.py: {' '.join(words)}: {ran.stderr}")

    def lines(self, *words):
        """What the broker says whose metadata is the latest: one that has just started tells what was before."""
        answers = []
        for member in self.members:
            command = [member.binary, "cluster", *words, "--format", "json", "--brokers", member.address]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode == 0:
                answers.append([json.loads(line) for line in ran.stdout.splitlines()])
        return max(answers, key=lambda lines: lines[0]["version"])

    def is_whole(self):
        lines = self.lines("status")
        alive = [line for line in lines if line["kind"] == "broker" and not line["fenced"]]
        health = lines[0]["health"]
        return len(alive) == 3 and not health["under_replicated"] and not health["leaderless"]

    def whole(self, pause=0.05):
        """Beside live traffic `pause` is longer: each look starts three processes."""
        while not self.is_whole():
            time.sleep(pause)

    def lose(self, member):
        """Kills a broker, and waits until others lead what it led."""
        member.end(signal.SIGKILL)
        while not any(line.get("fenced") and line["id"] == member.number for line in self.lines("status")):
            time.sleep(0.05)

    def topic(self, name, partitions, *words):
        self.run("topic", "create", name, "--partitions", str(partitions), "--replication-factor", "3", *words)
        self.whole()

    def partitions(self, topic=None):
        lines = self.lines("describe", *(["--topic", topic] if topic else []))
        return [line for line in lines if line["kind"] == "partition"]

    def member(self, number):
        return self.members[number - 1]

    def controller(self):
        return self.lines("status")[0]["controller"]

    def end(self):
        for member in self.members:
            member.process.send_signal(signal.SIGKILL)
        for member in self.members:
            member.process.wait()
        shutil.rmtree(self.data)

    def live(self, rate, seconds, meanwhile=None, warmup=2):
        """Open-loop traffic of 1,000 B records with acks=all; its report. `meanwhile` runs beside it, after the warm-up."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as workload:
            workload.write(
                f"name: live\ntopics: 1\npartitionsPerTopic: 6\nmessageSize: 1000\nsubscriptionsPerTopic: 0\n"
                f"consumerPerSubscription: 0\nproducersPerTopic: 2\nproducerRate: {rate}\n"
                f"testDurationMinutes: {seconds / 60}\nwarmupDurationMinutes: {warmup / 60}\n")
            workload.flush()
            command = [self.members[0].binary, "bench", workload.name, "--brokers", self.address, "--replication-factor", "3",
                       "--format", "json"]
            load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            if meanwhile:
                time.sleep(warmup + 1)
                meanwhile()
            out, err = load.communicate()
        return json.loads(out.splitlines()[-1]) if load.returncode == 0 else sys.exit(f"figures.py: the load: {err}")


def told(name, report):
    taken = report["acknowledge"]
    print(f"{name}: {report['produced']['records_s']:,.0f} records/s, p50 {taken['p50_us'] / 1000:.2f} ms, "
          f"p99 {taken['p99_us'] / 1000:.2f} ms, failed {report['failed']}", flush=True)
    return taken["p99_us"] / 1000


def cluster_acks(arguments):
    loads = {
        "4 x 100 x 1,000 B": (["--connections", "4", "--records-per-request", "100"], 4, "mb_s", "MB/s"),
        "16 x 1 x 100 B": (["--connections", "16", "--records-per-request", "1", "--record-bytes", "100"], 16, "requests_s",
                           "requests/s"),
    }
    three, data = Cluster(arguments), fresh(arguments)
    one = Member(arguments.ringlog, data, 1, three.members[2].port + 1)
    ways = {"one broker": (one, ["--acks", "all"]), "three, acks=1": (three, ["--acks", "1"]),
            "three, acks=all": (three, ["--acks", "all"])}
    taken = {name: ({way: [] for way in ways}, {way: [] for way in ways}) for name in loads}
    for number, (name, (_, count, _, _)) in enumerate(loads.items()):
        three.topic(f"load-{number}", count, "--config", "retention.bytes=300000000")
        one.run("topic", "create", f"load-{number}", "--partitions", str(count), "--config", "retention.bytes=300000000")
    for turn in range(arguments.rounds):
        for number, (name, (words, _, figure, unit)) in enumerate(loads.items()):
            for way in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                where, acks = ways[way]
                report = json.loads(where.run("bench", "load", "--topic", f"load-{number}", "--keep", *acks, *words, "--warmup", "1",
                                              "--seconds", str(arguments.seconds), "--format", "json").splitlines()[-1])
                taken[name][0][way].append(report[figure])
                taken[name][1][way].append(report["p99_us"] / 1000)
                print(f"round {turn}, {name}, {way}: {report[figure]:,.0f} {unit}, p50 {report['p50_us'] / 1000:.2f} ms, "
                      f"p99 {report['p99_us'] / 1000:.2f} ms", flush=True)
    one.end()
    shutil.rmtree(data)
    three.end()
    for name, (rates, tails) in taken.items():
        show(f"{name}, {loads[name][3]}", rates, "one broker", loads[name][3])
        show(f"{name}, p99", tails, "one broker", "ms")


class Brake:
    """Holds a process' writes to the device of a directory, by the block controller of control groups (its first version)."""

    GROUP = "/sys/fs/cgroup/blkio/ringlog-figures"

    def __init__(self, directory, process):
        device = os.stat(directory).st_dev
        self.device = f"{os.major(device)}:{os.minor(device)}"
        os.makedirs(self.GROUP, exist_ok=True)
        self.write("cgroup.procs", str(process))

    def write(self, name, text):
        with open(os.path.join(self.GROUP, name), "w") as file:
            file.write(text)

    def written(self):
        """Bytes and writes so far."""
        figures = []
        for name in "io_service_bytes", "io_serviced":
            with open(os.path.join(self.GROUP, f"blkio.throttle.{name}")) as file:
                found = [line.split()[2] for line in file if line.startswith(f"{self.device} Write")]
                figures.append(int(found[0]) if found else 0)
        return figures

    def hold(self, bytes_s, writes_s):
        self.write("blkio.throttle.write_bps_device", f"{self.device} {int(bytes_s)}")
        self.write("blkio.throttle.write_iops_device", f"{self.device} {int(writes_s)}")

    def end(self):
        self.hold(0, 0)
        with open(os.path.join(self.GROUP, "cgroup.procs")) as file:
            for process in file.read().split():
                with open("/sys/fs/cgroup/blkio/cgroup.procs", "w") as back:
                    back.write(process)
        os.rmdir(self.GROUP)


class Marks:
    """Moments of a run of live traffic, seconds since its measured time began, and what its report says of the time between."""

    def __init__(self, warmup=2):
        self.began, self.warmup, self.marks = time.monotonic(), warmup, {}

    def __setitem__(self, name, moment):
        self.marks[name] = moment - self.began - self.warmup

    def p99_ms(self, report, begin, end, later=1):
        """Of all that was acknowledged in the whole seconds from `later` seconds behind one moment to another: one figure."""
        begin, end = self.marks[begin] + later, self.marks.get(end, float("inf"))
        points = [point for point in report["seconds"] if begin <= point["at_s"] and point["at_s"] + 1 <= max(end, begin + 2)]
        counts = sorted((us, count) for point in points for us, count in point["counts"])
        left = sum(count for _, count in counts) / 100
        for us, count in reversed(counts):
            left -= count
            if left <= 0:
                return [us / 1000]
        return []


def by_second(name, report):
    told(f"{name}, all together", report)
    print("  p99 by second, ms: " + " ".join(f"{point['p99_us'] / 1000:.1f}" for point in report["seconds"]), flush=True)


def cluster_slow(arguments):
    figures = {"as fast as the others": [], "slow, in the sets": [], "slow, out of the sets": []}
    for turn in range(arguments.rounds):
        slow_follower(arguments, turn, figures)
    show("acknowledge p99 of each part", figures, "as fast as the others", "ms")


def slow_follower(arguments, turn, figures):
    three = Cluster(arguments)
    controller = three.controller()
    slow = three.member(next(number for number in (1, 2, 3) if number != controller))
    brake = Brake(three.data, slow.process.pid)

    def until(what):
        while not all(what(line) for line in three.partitions() if line["topic"].startswith("bench-")):
            time.sleep(0.1)

    def slowed():
        # A follower only: a leader with a slow disk is another matter. Not before the topic is there: who is drained gets nothing.
        three.run("cluster", "drain", str(slow.number), "--leaders-only")
        until(lambda line: line["leader"] != slow.number)
        marks["follows"] = since = time.monotonic()
        before = brake.written()
        time.sleep(8)
        asked = [(now - then) / (time.monotonic() - since) for now, then in zip(brake.written(), before)]
        print(f"broker {slow.number} writes {asked[0] / 1e6:.1f} MB/s in {asked[1]:,.0f} writes/s; now at most a tenth of both", flush=True)
        brake.hold(asked[0] / 10, asked[1] / 10)
        marks["held"] = since = time.monotonic()
        until(lambda line: not any(replica["in_sync"] for replica in line["replicas"] if replica["broker"] == slow.number))
        marks["left"] = time.monotonic()
        print(f"out of all sets {time.monotonic() - since:.1f} s later", flush=True)

    try:
        marks = Marks()
        report = three.live(arguments.rate, 45, slowed)
        by_second(f"round {turn}", report)
        figures["as fast as the others"] += marks.p99_ms(report, "follows", "held")
        figures["slow, in the sets"] += marks.p99_ms(report, "held", "left")
        # What has waited in the clients is sent first.
        figures["slow, out of the sets"] += marks.p99_ms(report, "left", "end", later=5)
    finally:
        brake.end()
        three.end()


def filled(three, seconds):
    """Another load, as fast as it goes, on a topic that keeps a gigabyte."""
    three.run("bench", "load", "--topic", "kept", "--keep", "--connections", "6", "--records-per-request", "100", "--acks", "1",
              "--warmup", "0", "--seconds", str(seconds))


def cluster_return(arguments):
    three = Cluster(arguments)
    figures = {"all three": [], "two of three": [], "while it catches up": [], "all three again": []}
    three.topic("kept", 6, "--config", "retention.bytes=1000000000")
    # New segments are zeroed meanwhile, which delays what is written to them: measured is what goes on for long, files used again.
    filled(three, 6)
    for turn in range(arguments.rounds):
        away = three.member(next(number for number in (1, 2, 3) if number != three.controller()))

        def goes_and_returns():
            marks["all"] = time.monotonic()
            time.sleep(20)
            marks["gone"] = time.monotonic()
            three.lose(away)
            filled(three, 6)
            marks["two"] = time.monotonic()
            time.sleep(8)
            marks["back"] = began = time.monotonic()
            away.begin()
            ready = time.monotonic() - began
            three.whole(pause=2)
            marks["whole"] = whole = time.monotonic()
            time.sleep(10)
            marks["end"] = time.monotonic()
            print(f"round {turn}: ready after {ready:.1f} s, whole after {whole - began:.1f} s", flush=True)

        marks = Marks()
        report = three.live(arguments.rate, 98, goes_and_returns)
        by_second(f"round {turn}", report)
        figures["all three"] += marks.p99_ms(report, "all", "gone")
        figures["two of three"] += marks.p99_ms(report, "two", "back", later=2)
        figures["while it catches up"] += marks.p99_ms(report, "back", "whole", later=0)
        figures["all three again"] += marks.p99_ms(report, "whole", "end", later=2)
    three.end()
    show("acknowledge p99 of live traffic, all seconds of each part together", figures, "all three", "ms")


class Sender:
    """Numbered lines, one every few milliseconds, and when each was acknowledged."""

    def __init__(self, cluster, topic, *words):
        command = [cluster.members[0].binary, "produce", topic, *words, "--receipts", "--format", "json",
                   "--brokers", cluster.address]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.sent, self.acknowledged, self.stopped = [], {}, False
        threading.Thread(target=self.send, daemon=True).start()
        threading.Thread(target=self.receive, daemon=True).start()

    def send(self):
        while not self.stopped:
            self.sent.append(time.monotonic())
            self.process.stdin.write(f"{len(self.sent)}\n")
            self.process.stdin.flush()
            time.sleep(0.005)
        self.process.stdin.close()

    def receive(self):
        for line in self.process.stdout:
            receipt = json.loads(line).get("receipt")
            if receipt:
                self.acknowledged[receipt["line"]] = time.monotonic()

    def first_after(self, moment):
        """When the first line that was sent after `moment` was acknowledged."""
        while True:
            line = next((at + 1 for at, sent in enumerate(self.sent) if sent > moment), None)
            if line in self.acknowledged:
                return self.acknowledged[line]
            time.sleep(0.001)

    def end(self):
        self.stopped = True
        self.process.wait()


def cluster_failover(arguments):
    settings = {
        "as it is": [],
        "half the times": ["--heartbeat-ms", "75", "--session-ms", "500", "--election-ms", "200"],
    }
    figures = {}
    for name, words in settings.items():
        three = Cluster(arguments, words)
        three.topic("failing", 1)
        sender = Sender(three, "failing", "--partition", "0")
        for turn in range(arguments.rounds):
            sender.first_after(time.monotonic())
            leader, controller = three.partitions("failing")[0]["leader"], three.controller()
            moment = time.monotonic()
            three.member(leader).end(signal.SIGKILL)
            took = (sender.first_after(moment) - moment) * 1000
            kind = f"{name}, also the metadata's leader" if leader == controller else name
            figures.setdefault(kind, []).append(took)
            print(f"round {turn}, {kind}: {took:,.0f} ms", flush=True)
            three.member(leader).begin()
            three.whole()
        sender.end()
        three.end()
    show("from kill -9 of the leader to the next record acknowledged by all", figures, next(iter(figures)), "ms")


def cluster_move(arguments):
    """Moves of a partition that is read from the device, at rates that are set, and at none."""
    megabytes, line = 60, "x" * 999 + "\n"
    three = Cluster(arguments)
    three.run("topic", "create", "old", "--partitions", "1", "--replication-factor", "1")
    command = [arguments.ringlog, "produce", "old", "--brokers", three.address]
    filled = subprocess.run(command, input=line * (megabytes * 1000), capture_output=True, text=True)
    if filled.returncode != 0:
        sys.exit(f"figures.py: the topic is not filled: {filled.stderr}")
    for rate in ["4MB", "12MB", "none"] * arguments.rounds:
        source = three.member(three.partitions("old")[0]["leader"])
        # What is in memory goes out as what is new does.
        source.end()
        source.begin()
        three.whole()
        to = source.number % 3 + 1
        began = time.monotonic()
        three.run("cluster", "move", "old:0", "--to", str(to), "--throttle", rate)
        took = time.monotonic() - began
        print(f"{megabytes} MB moved from broker {source.number} to {to} at --throttle {rate}: {took:.2f} s, "
              f"{megabytes / took:.2f} MB/s", flush=True)
    three.end()


def upgrade(arguments):
    three = Cluster(argparse.Namespace(ringlog=arguments.other, data=arguments.data))
    three.topic("kept", 6)
    sender = Sender(three, "kept")
    sender.first_after(time.monotonic())
    for member in three.members:
        began = time.monotonic()
        member.run("cluster", "drain", str(member.number), "--leaders-only")
        member.end()
        member.binary = arguments.ringlog
        member.begin()
        member.run("cluster", "undrain", str(member.number))
        three.whole()
        sender.first_after(time.monotonic())
        moments = sorted(moment for moment in sender.acknowledged.values() if moment > began)
        gap = max(after - before for before, after in zip(moments, moments[1:]))
        print(f"broker {member.number}: whole after {moments[-1] - began:.1f} s, {len(moments)} lines acknowledged, "
              f"none for at most {gap * 1000:,.0f} ms", flush=True)
    sender.end()
    lines = three.run("consume", "kept", "--until-end").split()
    missing = len(sender.acknowledged) - len({int(line) for line in lines} & sender.acknowledged.keys())
    print(f"{len(sender.acknowledged)} lines acknowledged, {missing} missing, {len(lines) - len(set(lines))} twice")
    three.end()


def cluster(arguments):
    globals()[f"cluster_{arguments.part}"](arguments)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ringlog", default="target/release/ringlog")
    parser.add_argument("--data", default=".")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rate", type=int, default=10_000, help="records per second of live traffic")
    commands = parser.add_subparsers(dest="figure", required=True)
    for figure in [partitions, idle, start, kept]:
        commands.add_parser(figure.__name__).add_argument("number", nargs="?", type=int)
    for figure in [before, upgrade]:
        commands.add_parser(figure.__name__).add_argument("other")
    commands.add_parser("cluster").add_argument("part", choices=["acks", "slow", "return", "failover", "move"])
    arguments = parser.parse_args()
    globals()[arguments.figure](arguments)


main()
