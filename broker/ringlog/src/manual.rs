//! Examples of every command: what `ringlog help COMMAND` shows below the options, and the page of all commands made of both.
//!
//! Owner: `main` adds them before it reads the arguments. Invariants, kept by the tests here: every command has an
//! example, every example is understood by the command that it is of, and `docs/COMMANDS.md` is what [`page`] makes of
//! the commands as they are. Absent on purpose: what the options mean, which stands with them.

use clap::Command;

/// By command: its lines, each with what it does.
type Examples = &'static [(&'static str, &'static [(&'static str, &'static str)])];

const EXAMPLES: Examples = &[
    (
        "serve",
        &[
            ("ringlog serve", "on this host alone, the log in ./ringlog-data"),
            (
                "ringlog serve --data /var/lib/ringlog --listen 0.0.0.0:9644 --advertise broker-1 --http 0.0.0.0:9645",
                "for others, with metrics",
            ),
        ],
    ),
    (
        "demo",
        &[
            ("ringlog demo --megabytes 500", "half a gigabyte through a broker in this process, verified"),
            ("ringlog demo --brokers 3", "three processes; one is killed while it leads, nothing is lost"),
        ],
    ),
    (
        "topic create",
        &[
            ("ringlog topic create clicks --partitions 8 --config retention.ms=30d", "kept for a month"),
            (
                "ringlog topic create orders --partitions 8 --replication-factor 3",
                "each partition on three brokers",
            ),
            (
                "ringlog topic create customers --partitions 1 --config cleanup.policy=compact",
                "the latest record of each key is kept",
            ),
        ],
    ),
    (
        "cluster status",
        &[("ringlog cluster status", "brokers, who keeps the metadata, what is not as it should be")],
    ),
    (
        "cluster describe",
        &[
            (
                "ringlog cluster describe --troubled",
                "partitions without a leader, with lagging replicas, on the move",
            ),
            ("ringlog cluster describe --topic clicks --format json", "one topic, for programs"),
        ],
    ),
    (
        "cluster move",
        &[
            (
                "ringlog cluster move clicks:3 --to 1,2,4",
                "partition 3 on brokers 1, 2 and 4; 1 is to lead it",
            ),
            ("ringlog cluster move clicks:3 --cancel", "give that up"),
        ],
    ),
    (
        "cluster drain",
        &[
            ("ringlog cluster drain 3", "everything off broker 3, before it is stopped for good"),
            (
                "ringlog cluster drain 3 --throttle 50MB",
                "the same, copying no more than that per second and broker",
            ),
            ("ringlog cluster drain 3 --leaders-only", "only leaderships, before a restart"),
        ],
    ),
    ("cluster undrain", &[("ringlog cluster undrain 3", "it takes part again")]),
    (
        "cluster add",
        &[("ringlog cluster add 4 --dry-run", "what would move to the broker that has just joined")],
    ),
    ("cluster remove", &[("ringlog cluster remove 3", "forget it, once it is drained and stopped")]),
    (
        "cluster rebalance",
        &[
            ("ringlog cluster rebalance --dry-run", "the plan, with what it would copy"),
            ("ringlog cluster rebalance --no-wait", "carried out in the background"),
            (
                "ringlog cluster rebalance --cores --dry-run",
                "what each core carries, and what would move to others",
            ),
            ("ringlog cluster rebalance --cores --over 30", "by what goes in and out in half a minute"),
        ],
    ),
    (
        "cluster move-home",
        &[(
            "ringlog cluster move-home clicks:3 --core 1",
            "to core 1 of the broker that leads it, and for how long it paused",
        )],
    ),
    (
        "cluster throttle",
        &[
            ("ringlog cluster throttle 50MB", "from now on, also for moves that are under way"),
            ("ringlog cluster throttle none", "as fast as there is room"),
        ],
    ),
    (
        "cluster elect",
        &[
            ("ringlog cluster elect", "preferred leaders take over where they are in sync"),
            (
                "ringlog cluster elect --partition clicks:3 --unclean",
                "nobody else can lead it: records may be LOST",
            ),
        ],
    ),
    ("topic list", &[("ringlog topic list", "names, partitions, bytes")]),
    (
        "topic describe",
        &[(
            "ringlog topic describe clicks",
            "where each partition begins and ends, every setting with its range",
        )],
    ),
    (
        "topic alter",
        &[
            (
                "ringlog topic alter clicks --set retention.ms=7d --unset retention.bytes",
                "while it is in use",
            ),
            ("ringlog topic alter clicks --partitions 16", "more partitions; keys may move"),
            ("ringlog topic alter clicks --replication-factor 3 --dry-run", "what would be copied where"),
        ],
    ),
    ("topic delete", &[("ringlog topic delete clicks", "with all its records")]),
    (
        "topic delete-records",
        &[
            (
                "ringlog topic delete-records clicks --before 0:1500 --before 1:900",
                "what is below these offsets",
            ),
            ("ringlog topic delete-records clicks --all", "everything that is there now"),
        ],
    ),
    (
        "produce",
        &[
            ("echo hello | ringlog produce greetings", "a line is a record; makes the topic"),
            (
                "ringlog produce flights --file flights.csv --header --key-field 3 --compression zstd",
                "keyed by a column",
            ),
            (
                "echo 'ann:clicked' | ringlog produce clicks --key-separator : --receipts",
                "the receipt of every record",
            ),
            ("ringlog produce copy --input json --file records.json", "keys, headers, times, tombstones"),
            (
                "ringlog produce clicks --set linger.ms=5 --set batch.size=256KiB --set partitioner=modulo",
                "settings by their usual names",
            ),
        ],
    ),
    (
        "consume",
        &[
            ("ringlog consume greetings", "from the start, then whatever comes"),
            (
                "ringlog consume clicks --from @2026-01-31T12:00:00Z --until-end --keys",
                "from a time to where it ends now",
            ),
            (
                "ringlog consume clicks --partition 3 --offset 1500 --max 10 --format json",
                "ten records with everything",
            ),
            (
                "ringlog consume clicks --group workers --session-timeout-ms 10000",
                "a share of the partitions; begins where the group was",
            ),
            (
                "ringlog consume clicks --set max.partition.fetch.bytes=64KiB --set fetch.max.wait.ms=50",
                "settings by their usual names",
            ),
            (
                "ringlog consume clicks --set client.rack=eu-1a",
                "at replicas in this rack, where there are any",
            ),
        ],
    ),
    ("group list", &[("ringlog group list", "every group and its state")]),
    (
        "group describe",
        &[("ringlog group describe workers", "members, committed offsets, lag in records and in time")],
    ),
    (
        "group reset",
        &[
            ("ringlog group reset workers --to @2026-01-31T12:00:00Z --dry-run", "what would be set"),
            (
                "ringlog group reset workers --topic clicks --partition 3 --to earliest",
                "one partition again from its start",
            ),
        ],
    ),
    ("group delete", &[("ringlog group delete workers", "with its offsets; only without members")]),
    ("status", &[("ringlog status --format json", "counters of each core, notices")]),
    (
        "top",
        &[
            ("ringlog top --every 2 --topics 10", "all cores and the ten busiest topics, live"),
            ("ringlog top --once", "once, for scripts"),
        ],
    ),
    (
        "bench",
        &[
            ("ringlog bench", "the workload 'simple' against an embedded broker"),
            (
                "ringlog bench simple --brokers 127.0.0.1:9644 --rate 20000 --explain",
                "against a running one, and where the time went",
            ),
            ("ringlog bench simple --find-rate-for-p99 10", "the highest rate with a p99 of 10 ms"),
        ],
    ),
    ("bench workloads", &[("ringlog bench workloads", "their names and what they do")]),
    (
        "bench load",
        &[(
            "ringlog bench load --connections 4 --in-flight 8 --records-per-request 100",
            "raw requests, eight in flight on each of four connections",
        )],
    ),
    (
        "bench compare",
        &[(
            "ringlog bench compare simple --drivers ringlog,nats --rounds 5",
            "by turns, ratios to the first",
        )],
    ),
    (
        "bench compaction",
        &[(
            "ringlog bench compaction --rate 5000 --rounds 10",
            "the p99 of produce with and without, by turns",
        )],
    ),
    ("perf ceilings", &[("ringlog perf ceilings /var/lib", "what the device and the kernel allow")]),
    (
        "perf profile",
        &[(
            "ringlog perf profile --output profile.svg -- simple --rate 50000",
            "a flame graph of the broker under load",
        )],
    ),
    ("perf share", &[("ringlog perf share report.json", "which ceiling bound a run")]),
    ("perf record", &[("ringlog perf record --from report.json", "keeps its key figures, by commit")]),
    ("perf plot", &[("ringlog perf plot", "draws what was recorded")]),
    (
        "doctor",
        &[
            ("ringlog doctor --data /var/lib/ringlog", "what will hurt a broker there, and the fix"),
            ("ringlog doctor --disk /var/lib/ringlog", "measures its disk, for ringlog serve to use"),
        ],
    ),
    (
        "tune",
        &[
            ("ringlog tune --profile production --dry-run", "what would be written, and what it says now"),
            ("ringlog tune --undo", "takes it back"),
        ],
    ),
];

/// The command with the examples of each of its commands.
pub fn with_examples(mut root: Command) -> Command {
    for (path, examples) in EXAMPLES {
        let mut text = String::from("Examples:");
        for (line, does) in *examples {
            text.push_str(&format!("\n  {line}\n      {does}"));
        }
        root = at(root, &path.split(' ').collect::<Vec<_>>(), &text);
    }
    root
}

fn at(command: Command, path: &[&str], text: &str) -> Command {
    match path {
        [] => command.after_help(text.to_owned()),
        [first, rest @ ..] => command.mut_subcommand(*first, |inner| at(inner, rest, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::Path;

    /// Options that many commands share; the page has them once.
    const SHARED: [&str; 4] = ["brokers", "format", "help", "version"];

    fn root() -> Command {
        let mut root = with_examples(crate::Arguments::command());
        root.build();
        root
    }

    /// Commands that do something, with their path.
    fn leaves<'a>(command: &'a Command, path: &str, found: &mut Vec<(String, &'a Command)>) {
        let inner: Vec<_> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
        if !path.is_empty() && (inner.is_empty() || !command.is_subcommand_required_set()) {
            found.push((path.to_owned(), command));
        }
        for inner in inner {
            leaves(inner, format!("{path} {}", inner.get_name()).trim_start(), found);
        }
    }

    /// Words of a shell's line; quotes are single and around whole words.
    fn words(line: &str) -> Vec<String> {
        let pieces = line.split('\'').enumerate();
        let words = pieces.flat_map(|(at, piece)| match at % 2 {
            0 => piece.split_whitespace().map(str::to_owned).collect(),
            _ => vec![piece.to_owned()],
        });
        words.collect()
    }

    #[test]
    fn every_command_has_examples_that_it_understands() {
        let root = root();
        let mut commands = Vec::new();
        leaves(&root, "", &mut commands);
        for (path, _) in &commands {
            assert!(
                EXAMPLES.iter().any(|(of, examples)| of == path && !examples.is_empty()),
                "{path} has no example"
            );
        }
        for (path, examples) in EXAMPLES {
            assert!(commands.iter().any(|(of, _)| of == path), "{path} is no command");
            for (line, _) in *examples {
                let own =
                    line.split('|').map(words).find(|words| words[0] == "ringlog").expect("our command");
                assert!(own[1..].join(" ").starts_with(path), "{line} is of another command than {path}");
                if let Err(error) = root.clone().try_get_matches_from(&own) {
                    panic!("{line}: {error}");
                }
            }
        }
    }

    /// Text that stands in a cell of a table.
    fn cell(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "\\<")
    }

    fn options(command: &Command, page: &mut String, is_listed: impl Fn(&str) -> bool) {
        let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
        let mut rows = String::new();
        for argument in arguments.filter(|argument| is_listed(argument.get_id().as_str())) {
            let takes_value = argument.get_action().takes_values();
            let value = match (argument.get_value_names(), takes_value) {
                (Some(names), true) => names.join(" "),
                _ => String::new(),
            };
            let name = match argument.get_long() {
                Some(long) if value.is_empty() => format!("--{long}"),
                Some(long) => format!("--{long} {value}"),
                None => value,
            };
            let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let choices: Vec<_> = (argument.get_possible_values().into_iter())
                .filter(|choice| takes_value && !choice.is_hide_set())
                .map(|choice| format!("`{}`", choice.get_name()))
                .collect();
            if !choices.is_empty() {
                text.push_str(&format!(" ({})", choices.join(", ")));
            }
            let defaults: Vec<_> =
                argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            if takes_value && !defaults.is_empty() {
                text.push_str(&format!(" [default: {}]", defaults.join(",")));
            }
            if let Some(variable) = argument.get_env() {
                text.push_str(&format!(" [or `{}`]", variable.to_string_lossy()));
            }
            rows.push_str(&format!("| `{}` | {} |\n", name.replace('|', "\\|"), cell(&text)));
        }
        if !rows.is_empty() {
            page.push_str(&format!("\n| Option | Means |\n|---|---|\n{rows}"));
        }
    }

    /// `docs/COMMANDS.md`.
    fn page(root: &Command) -> String {
        let mut page = String::from(
            "# Commands\n\nEverything that `ringlog` can be asked for; `ringlog help COMMAND` says the same. Made from the commands \
             themselves\n(`broker/ringlog/src/manual.rs`), with `RINGLOG_UPDATE_DOCS=1 cargo test -p ringlog --bin ringlog manual`; a \
             test fails when it\nis not current. Results are on standard output, all else on standard error. Exit status: 0 done, 1 the \
             operation failed,\n2 wrong usage or a broker that cannot start.\n",
        );
        let mut commands = Vec::new();
        leaves(root, "", &mut commands);
        page.push_str("\n| Command | Does |\n|---|---|\n");
        for (path, command) in &commands {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            page.push_str(&format!("| [`{path}`](#{}) | {} |\n", path.replace(' ', "-"), cell(&about)));
        }
        let (_, any) =
            commands.iter().find(|(path, _)| path == "produce").expect("it has the shared options");
        page.push_str("\nOptions that many commands share:\n");
        options(any, &mut page, |id| SHARED[..2].contains(&id));
        for (path, command) in &commands {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            page.push_str(&format!("\n## {path}\n{about}.\n\n```sh\n"));
            let (_, examples) = EXAMPLES.iter().find(|(of, _)| of == path).expect("another test sees to it");
            for (line, does) in *examples {
                page.push_str(&format!("{line}  # {does}\n"));
            }
            page.push_str("```\n");
            let has = |id: &str| command.get_arguments().any(|argument| argument.get_id() == id);
            let shared: Vec<_> =
                SHARED[..2].iter().filter(|id| has(id)).map(|id| format!("`--{id}`")).collect();
            if !shared.is_empty() {
                page.push_str(&format!("\nTakes {}.\n", shared.join(" and ")));
            }
            options(command, &mut page, |id| !SHARED.contains(&id));
        }
        page
    }

    #[test]
    fn the_page_of_commands_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/COMMANDS.md");
        let page = page(&root());
        if std::env::var_os("RINGLOG_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &page).expect("the repository can be written to");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = page.lines().zip(written.lines()).find(|(new, old)| new != old);
        assert!(
            page == written,
            "docs/COMMANDS.md is not current: make it with RINGLOG_UPDATE_DOCS=1 (first difference: {differs:?})"
        );
    }
}
