//! Every limit of the broker, with its unit last, and the assertions that relate them.
//!
//! A limit that is not here does not exist: whoever bounds a queue, a buffer or a loop takes the number
//! from this file. Settings may lower a limit, never raise it.

/// One kibibyte.
pub const KIB: usize = 1 << 10;
/// One mebibyte.
pub const MIB: usize = 1 << 20;

// ---- Frames and connections --------------------------------------------------------------------------

/// The largest frame before `Hello` is answered, bytes.
pub const FRAME_BYTES_MAX_BEFORE_HELLO: usize = 64 * KIB;
/// The largest frame after it (`max.request.size`), bytes.
pub const FRAME_BYTES_MAX: usize = 16 * MIB;
/// The largest metadata of a frame, bytes: it is copied, the body is not.
pub const FRAME_METADATA_BYTES_MAX: usize = MIB;
/// FlatBuffers tables in one request.
pub const FRAME_TABLES_MAX: usize = 64 + TOPICS_PER_REQUEST_MAX;
/// Topics named by one produce or fetch.
pub const TOPICS_PER_REQUEST_MAX: usize = 4096;
/// Connections of one shard.
pub const CONNECTIONS_PER_SHARD_MAX: usize = 16 * KIB;
/// Connections of one shard that have not said `Hello` yet.
pub const CONNECTIONS_BEFORE_HELLO_MAX: usize = 8 * KIB;
/// How long a connection may take to say `Hello`, milliseconds.
pub const HELLO_TIMEOUT_MS: u64 = 10_000;
/// How long a frame may take from its first byte to its last, milliseconds.
pub const FRAME_TIMEOUT_MS: u64 = 30_000;
/// How long a peer may refuse to take the next bytes of its replies, milliseconds.
pub const WRITE_TIMEOUT_MS: u64 = 30_000;
/// How long a connection may be silent before the kernel asks whether its peer is still there, milliseconds.
pub const PEER_PROBE_AFTER_MS: u64 = 60_000;
/// How long between the kernel's questions, milliseconds.
pub const PEER_PROBE_INTERVAL_MS: u64 = 15_000;
/// Unanswered questions after which the connection ends.
pub const PEER_PROBES_MAX: u32 = 4;
/// How long a connection that is closed for what it said may go on talking, milliseconds…
pub const DRAIN_MS: u64 = 1_000;
/// … and how much, bytes: a frame that is under way, so that the answer to it is not lost.
pub const DRAIN_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Request bytes taken from one connection and not yet answered.
pub const IN_FLIGHT_BYTES_PER_CONNECTION_MAX: usize = 32 * MIB;
/// Requests taken from one connection and not yet answered.
pub const IN_FLIGHT_REQUESTS_PER_CONNECTION_MAX: usize = 1024;
/// Request bytes taken from all connections of a shard and not yet answered.
pub const IN_FLIGHT_BYTES_PER_SHARD_MAX: usize = 256 * MIB;
/// Reply bytes of one connection: queued, before it is muted, and with those that its fetches may add.
pub const REPLY_BYTES_PER_CONNECTION_MAX: usize = 32 * MIB;
/// Reply bytes queued for all connections of a shard, and those that fetches under way may add; fetches wait
/// above it.
pub const REPLY_BYTES_PER_SHARD_MAX: usize = 256 * MIB;
/// Bytes read from a socket at once for small frames: one buffer per shard, not per connection.
pub const RECEIVE_SCRATCH_BYTES: usize = 64 * KIB;
/// Bodies from this size on are received straight into the buffer that goes to the device.
pub const IN_PLACE_BODY_BYTES_MIN: usize = 32 * KIB;

// ---- Between cores -----------------------------------------------------------------------------------

/// Messages that may wait in one shard's mailbox; a sender without a credit answers `OVERLOADED`.
pub const MAILBOX_MESSAGES_MAX: usize = 1024;
/// Bytes that may be on their way to one shard's mailbox.
pub const MAILBOX_BYTES_MAX: usize = 64 * MIB;
/// Connections that other brokers' metadata threads may have here: a few of each.
pub const PEER_CONNECTIONS_MAX: usize = 5 * BROKERS_MAX;
/// Brokers that vote on the metadata unless set, if there are as many.
pub const METADATA_VOTERS_DEFAULT: usize = 3;
/// How often new partitions are placed on brokers, if those have stopped serving by the time that it counts.
pub const PLACEMENTS_MAX: u32 = 8;
/// Brokers that vote at most: each more makes every change slower.
pub const METADATA_VOTERS_MAX: usize = 7;
/// The least time without a metadata leader before another is elected, milliseconds; the most is twice as long.
pub const METADATA_ELECTION_MS_DEFAULT: u64 = 400;
/// Commands that may wait for the metadata thread.
pub const METADATA_QUEUE_MAX: usize = 256;

// ---- Topics ------------------------------------------------------------------------------------------

/// Partitions of one topic.
pub const PARTITIONS_PER_TOPIC_MAX: u32 = 10_000;
/// Partitions of one shard.
pub const PARTITIONS_PER_SHARD_MAX: usize = 20_000;
/// Topics of a cluster.
pub const TOPICS_MAX: usize = 100_000;
/// Brokers of a cluster.
pub const BROKERS_MAX: usize = 1_000;
/// Replicas of a partition.
pub const REPLICAS_PER_PARTITION_MAX: usize = 16;
/// Between two heartbeats of a broker to the controller, milliseconds.
pub const BROKER_HEARTBEAT_MS_DEFAULT: u64 = 150;
/// A broker that the controller has not heard for so long is fenced, milliseconds.
pub const BROKER_SESSION_MS_DEFAULT: u64 = 1_000;
/// How often leaderships go back to the preferred leaders, milliseconds.
pub const LEADER_REBALANCE_MS_DEFAULT: u64 = 10_000;
/// Replicas of a topic whose maker does not say how many, where there are so many brokers (`default.replication.factor`).
pub const REPLICATION_FACTOR_DEFAULT: u32 = 3;
/// Partitions of one command that moves leaderships: it must fit [`COMMAND_BYTES_MAX`] and not stall the metadata.
///
/// [`COMMAND_BYTES_MAX`]: crate::metadata::command::COMMAND_BYTES_MAX
pub const ELECTIONS_PER_COMMAND_MAX: usize = 1_000;
/// Commands that a broker may be behind when it is unfenced.
pub const UNFENCE_LAG_COMMANDS_MAX: u64 = 100;
/// The largest permitted `max.message.bytes`.
pub const BATCH_BYTES_MAX: usize = 8 * MIB;
/// The default of `max.message.bytes`.
pub const BATCH_BYTES_DEFAULT: usize = MIB;

// ---- Storage -----------------------------------------------------------------------------------------

/// Partitions of a shard that are opened at once: each waits for its directory's sync, and after a crash for a few reads of at
/// most [`READ_BYTES_MAX`] and for a write.
pub const PARTITIONS_OPENING_MAX: usize = 32;

/// The unit of every write: groups start and end on it.
pub const BLOCK_BYTES: usize = 4 * KIB;
/// The largest flush group, header and padding included.
pub const GROUP_BYTES_MAX: usize =
    if 4 * MIB > BATCH_BYTES_MAX + BLOCK_BYTES { 4 * MIB } else { BATCH_BYTES_MAX + 2 * BLOCK_BYTES };
/// The largest single write to a device.
pub const WRITE_BYTES_MAX: usize = MIB;
/// The smallest permitted bound of a single write.
pub const WRITE_BYTES_MIN: usize = 128 * KIB;
/// Bytes of all groups in one flush round.
pub const ROUND_BYTES_MAX: usize = 16 * MIB;
/// The smallest permitted bound of a round; one group may be larger, and is then a round by itself.
pub const ROUND_BYTES_MIN: usize = MIB;
/// A round of at most so many writes makes each durable by itself unless set; a larger one shares a flush.
pub const DSYNC_WRITES_DEFAULT: usize = 2;
/// The same at most.
pub const DSYNC_WRITES_MAX: usize = 64;
/// Groups in one flush round.
pub const ROUND_GROUPS_MAX: usize = 1024;
/// Flush rounds in flight unless set.
pub const ROUNDS_IN_FLIGHT_DEFAULT: usize = 2;
/// Flush rounds in flight at most.
pub const ROUNDS_IN_FLIGHT_MAX: usize = 4;
/// Bytes of one log's groups that are on their way to the device at most. What a log has more waits for these.
pub const LOG_IN_FLIGHT_BYTES_MAX: usize = 2 * GROUP_BYTES_MAX;
/// What recovery reads of each file beyond the end of the valid chain to tell a hole from an end: nothing that was in
/// flight at the crash can lie farther away.
pub const RECOVERY_WINDOW_BYTES: usize = LOG_IN_FLIGHT_BYTES_MAX;
/// The physical size of a segment: a larger `segment.bytes` spans several.
pub const SEGMENT_BYTES_MAX: u64 = 128 * MIB as u64;
/// The smallest physical segment, for small disks and small settings.
pub const SEGMENT_BYTES_MIN: u64 = MIB as u64;
/// Bytes zeroed in a new segment before its first group, at least.
pub const PREWRITE_BYTES_MIN: u64 = 64 * KIB as u64;
/// Bytes zeroed in a new segment before its first group, at most. A thousand slow partitions that begin together need
/// no zeroing beside their first appends with it: a quarter of that was used up within three seconds by all at once.
pub const PREWRITE_FIRST_BYTES_MAX: u64 = 256 * KIB as u64;
/// The same of all partitions of a shard together: where there are more than two thousand, each new segment has less.
pub const PREWRITE_FIRST_BYTES_PER_SHARD: u64 = 512 * MIB as u64;
/// Bytes zeroed ahead of the append position at most.
pub const PREWRITE_BYTES_MAX: u64 = 64 * MIB as u64;
/// A partition with fewer appends than this has four seconds of them zeroed ahead instead of two: what its zeros cost is
/// the sync of the file behind them, which writes the inode, and of such partitions there may be thousands.
pub const PREWRITE_SLOW_BYTES_PER_SECOND: u64 = 256 * KIB as u64;
/// One zeroing write.
pub const PREWRITE_CHUNK_BYTES: usize = 128 * KIB;
/// Zeroing in the background, bytes per second and shard; more only for a shard that appends fast.
pub const PREWRITE_BYTES_PER_SECOND: u64 = 100_000_000;
/// Partitions of a shard that have blocks written ahead at once. Their writes share the shard's pace, but the sync
/// that ends each of them takes milliseconds, and many that wait together share what they wait for: a flush of the
/// device, and a commit of the file system's journal where it has one.
pub const PREPARING_PARTITIONS_MAX: usize = 32;
/// Recycled segments kept by a shard.
pub const SPARE_SEGMENTS_MAX: usize = 2;
/// A retired file shrinks by this much at a time: a large unlink stalls every other write.
pub const TRUNCATE_STEP_BYTES: u64 = 8 * MIB as u64;
/// A checkpoint is due after this many appended bytes of a shard…
pub const CHECKPOINT_BYTES: u64 = 256 * MIB as u64;
/// … or this many milliseconds.
pub const CHECKPOINT_MS: u64 = 30_000;
/// A partition that has been idle for so long gets its durable end recorded, milliseconds.
pub const IDLE_FLOOR_MS: u64 = 100;
/// Sparse index: one entry per this many bytes of a segment.
pub const INDEX_INTERVAL_BYTES: u64 = 256 * KIB as u64;
/// How far before the end of a segment without an index a group is looked for before all of it is read.
pub const INDEX_LOOK_BACK_BYTES: u64 = 2 * GROUP_BYTES_MAX as u64;
/// Indexes of sealed segments that one log keeps in memory, besides the active one's.
pub const LOADED_INDEXES_MAX: usize = 2;
/// Group buffers kept in memory after their write, for tail reads, bytes per shard.
pub const TAIL_CACHE_BYTES_PER_SHARD: usize = 128 * MIB;
/// One catch-up read.
pub const READ_BYTES_MAX: usize = MIB;
/// Catch-up reads in flight of one shard.
pub const READS_IN_FLIGHT_MAX: usize = 16;
/// Segment files that a shard keeps open for its readers.
pub const READ_FILES_PER_SHARD_MAX: usize = 64;
/// Catch-up reads ahead of one reader who reads on and on.
pub const READ_AHEAD_CHUNKS: u64 = 4;
/// Bytes that catch-up reads keep ahead for all readers of one shard.
pub const READ_AHEAD_BYTES_PER_SHARD: usize = 64 * MIB;
/// Group buffers that are being filled or written, bytes per shard; above it produce is refused with a
/// retriable `OVERLOADED`.
pub const DIRTY_BYTES_PER_SHARD_MAX: usize = 256 * MIB;
/// Free space below which produce is refused with `STORAGE_FULL`, bytes.
pub const FREE_SPACE_LOW_BYTES: u64 = 64 * MIB as u64;
/// Blocks that a shard keeps for what must be written to a full disk.
pub const RESERVE_BYTES: u64 = MIB as u64;
/// Idle buffers kept for reuse, bytes per shard.
pub const BUFFER_POOL_BYTES: usize = 32 * MIB;

// ---- Replication -------------------------------------------------------------------------------------

/// The default of `replica.lag.time.max.ms`: a member of the in-sync set that is behind for longer is taken out,
/// milliseconds.
pub const REPLICA_LAG_MS_DEFAULT: u64 = 10_000;
/// A member that needs longer than this for everything that it is sent, all of that time, while another does not, is taken
/// out as well, milliseconds: who waits for acknowledgements sends less, so that it is never that far behind.
pub const REPLICA_SLOW_MS: u64 = 200;
/// A high watermark that no batch carries is sent by itself after so long, milliseconds.
pub const WATERMARK_DELAY_MS: u64 = 5;
/// A change of the in-sync set that metadata has not answered is asked for again after so long, milliseconds.
pub const ALTER_RETRY_MS: u64 = 1_000;
/// After a refused change the leader waits before it asks for another, milliseconds.
pub const ALTER_REFUSED_BACKOFF_MS: u64 = 500;
/// A follower that refused, or does not answer, is asked again after so long, milliseconds…
pub const REOPEN_BACKOFF_MS_MIN: u64 = 10;
/// … twice as long each time, at most.
pub const REOPEN_BACKOFF_MS_MAX: u64 = 2_000;
/// How long opening at a follower may go without an answer before it begins anew, milliseconds. What is lost between two
/// brokers is lost without a word…
pub const OPEN_TIMEOUT_MS_MIN: u64 = 500;
/// … twice as long each time, at most: truncating and reading fingerprints are within it.
pub const OPEN_TIMEOUT_MS_MAX: u64 = 10_000;
/// How long a leader that gives its leadership away refuses produces, milliseconds; then it goes on leading.
pub const TRANSFER_MS_MAX: u64 = 1_000;
/// A suspicion, a repair, or a transfer that metadata has not taken note of is told again after so long,
/// milliseconds.
pub const REPORT_RETRY_MS: u64 = 1_000;
/// One chunk of batches for a follower, bytes; a larger batch goes by itself.
pub const PUSH_BYTES_MAX: usize = MIB;
/// The newest leader epochs that a follower names when a partition is opened.
pub const EPOCHS_NAMED_MAX: usize = 4096;

// ---- Idempotent producers ----------------------------------------------------------------------------

/// Producer ids that a shard takes from the metadata at once.
pub const PRODUCER_IDS_PER_BLOCK: u32 = 1_000;
/// Producer ids in one block at most.
pub const PRODUCER_IDS_PER_BLOCK_MAX: u32 = 1_000_000;
/// Batches of one producer in one partition that are appended and not yet durable: what a client may have in
/// flight.
pub const PRODUCER_IN_FLIGHT_MAX: usize = 5;
/// Newest batches of one producer in one partition whose repetition is recognised. One more than may be in flight,
/// so that the newest durable one is always among them, which a checkpoint needs.
pub const PRODUCER_BATCHES_KEPT: usize = PRODUCER_IN_FLIGHT_MAX + 1;
/// Producers that one partition remembers; a new one takes the place of the one that was silent longest.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 5_000;
/// Producers that the partitions of one shard remember; above it a partition takes a new one only in the place of
/// another, unless it has none.
pub const PRODUCERS_PER_SHARD_MAX: usize = 200_000;
/// The default of `producer.id.expiration.ms`: a producer silent for so long is forgotten.
pub const PRODUCER_EXPIRATION_MS_DEFAULT: u64 = 24 * 3600 * 1000;

// ---- Compaction --------------------------------------------------------------------------------------

/// What one pass of compaction remembers of keys, bytes: 24 for each. More keys than that take several passes.
pub const COMPACTION_MAP_BYTES_MAX: usize = 48 * MIB;
/// Producers that one pass remembers; of others it keeps more batch headers than it must.
pub const COMPACTION_PRODUCERS_MAX: usize = 64 * KIB;
/// What a compressed batch may unpack to, for a broker to look inside, bytes.
pub const UNPACKED_BATCH_BYTES_MAX: usize = 64 * MIB;
/// The payload of one group that compaction writes, bytes; a larger batch gets a group of its own.
pub const COMPACTION_GROUP_BYTES: usize = MIB;
/// What compaction reads and writes while nothing is appended, bytes per second and shard…
pub const COMPACTION_BYTES_PER_SECOND: u64 = 64 * MIB as u64;
/// … and while something is.
pub const COMPACTION_BYTES_PER_SECOND_BUSY: u64 = 12 * MIB as u64;
/// How much of its core it may take, percent, while nothing is appended…
pub const COMPACTION_CPU_PERCENT: u64 = 40;
/// … and while something is.
pub const COMPACTION_CPU_PERCENT_BUSY: u64 = 8;
/// It makes so much of what it writes durable at once: a large flush holds up those of the data path.
pub const COMPACTION_SYNC_BYTES: u64 = 4 * MIB as u64;
/// How often a shard looks for a log to compact, milliseconds.
pub const COMPACTION_LOOK_MS: u64 = 1_000;
/// How long a log is left alone after a pass over it has failed, milliseconds.
pub const COMPACTION_RETRY_MS: i64 = 60_000;

// ---- Scrubbing ---------------------------------------------------------------------------------------

/// What scrubbing reads while nothing is appended, bytes per second and shard…
pub const SCRUB_BYTES_PER_SECOND: u64 = 32 * MIB as u64;
/// … and while something is: 345 GB a day.
pub const SCRUB_BYTES_PER_SECOND_BUSY: u64 = 4 * MIB as u64;
/// How much of its core it may take, percent, while nothing is appended…
pub const SCRUB_CPU_PERCENT: u64 = 20;
/// … and while something is.
pub const SCRUB_CPU_PERCENT_BUSY: u64 = 2;
/// From the begin of one pass over everything to that of the next, milliseconds: a week.
pub const SCRUB_INTERVAL_MS_DEFAULT: u64 = 7 * 24 * 3_600_000;
/// How long after a start the first pass begins, milliseconds, if the interval is not shorter.
pub const SCRUB_DELAY_MS_MAX: u64 = 60_000;

// ---- Replication streams -----------------------------------------------------------------------------

/// Messages of one frame, and the epochs that go with them.
pub const REPLICATION_FRAME_MESSAGES_MAX: usize = 8192;
/// A frame takes no more appends once its body has so many bytes; the last one's may exceed them.
pub const REPLICATION_FRAME_BODY_BYTES: usize = MIB;
/// Bytes received at once; a larger frame gets a buffer of its size.
pub const REPLICATION_RECEIVE_BYTES: usize = 256 * KIB;
/// Bytes of batches that one follower broker has not acknowledged to one shard, sent over the live stream…
pub const REPLICATION_LIVE_BYTES_MAX: usize = 32 * MIB;
/// … and over the catch-up stream.
pub const REPLICATION_CATCH_UP_BYTES_MAX: usize = 16 * MIB;
/// What a shard sends over one catch-up stream while it appends, bytes per second; or twice what its clients produce, if that
/// is more: who is behind comes nearer.
pub const CATCH_UP_BYTES_PER_SECOND: u64 = 16 * MIB as u64;
/// Bytes of one push to who is behind while there is such a rate, or one batch: what is produced waits at the follower for the
/// round that has it.
pub const CATCH_UP_PUSH_BYTES_MAX: usize = 256 * KIB;
/// Of those under way, bytes of one partition; one batch may exceed them.
pub const REPLICATION_PARTITION_BYTES_MAX: usize = 8 * MIB;
/// What may wait to be sent over one stream, bytes; above it the stream is closed.
pub const REPLICATION_QUEUE_BYTES_MAX: usize = 48 * MIB;
/// Reads of the device under way for one follower broker, of each of its streams.
pub const REPLICATION_READS_MAX: usize = 2;
/// How long connecting to another broker may take, Hello included, milliseconds.
pub const REPLICATION_CONNECT_TIMEOUT_MS: u64 = 1_000;
/// After the first failure the next attempt waits so long, milliseconds…
pub const REPLICATION_RECONNECT_MS_MIN: u64 = 20;
/// … twice as long each time, at most.
pub const REPLICATION_RECONNECT_MS_MAX: u64 = 1_000;
/// How long a stream may be silent before the kernel asks whether its peer is still there, milliseconds; also the
/// time between questions.
pub const REPLICATION_PROBE_AFTER_MS: u64 = 2_000;
/// Unanswered questions after which the stream ends.
pub const REPLICATION_PROBES_MAX: u32 = 4;
/// How often a follower whose device is behind looks whether it can take more, milliseconds.
pub const REPLICATION_ROOM_LOOK_MS: u64 = 1;
/// Answers that wait to be taken to another shard, for one stream.
pub const FORWARDED_ANSWERS_MAX: usize = 64 * KIB;

// ---- Fetch -------------------------------------------------------------------------------------------

/// Fetches that may wait on one shard.
pub const FETCH_WAITERS_MAX: usize = 64 * KIB;
/// The longest wait of a fetch, milliseconds.
pub const FETCH_WAIT_MS_MAX: u64 = 60_000;
/// The body of one fetch reply.
pub const FETCH_BYTES_MAX: usize = 16 * MIB;

// ---- Consumer groups ---------------------------------------------------------------------------------

/// Partitions of the internal offsets topic unless set.
pub const OFFSETS_TOPIC_PARTITIONS_DEFAULT: u32 = 16;
/// Its replicas, as soon as there are so many brokers.
pub const OFFSETS_TOPIC_REPLICAS_MAX: u32 = 3;
/// The longest id of a group, and of a static member's instance, bytes.
pub const GROUP_ID_BYTES_MAX: usize = 249;
/// The longest id of a member, bytes.
pub const MEMBER_ID_BYTES_MAX: usize = 64;
/// The longest other text of a member (rack, client id), bytes.
pub const MEMBER_TEXT_BYTES_MAX: usize = 249;
/// The longest subscription pattern, bytes…
pub const PATTERN_BYTES_MAX: usize = 1024;
/// … and the most that it may take compiled, bytes.
pub const PATTERN_COMPILED_BYTES_MAX: usize = MIB;
/// All names of one member's subscription together, bytes.
pub const SUBSCRIPTION_BYTES_MAX: usize = 64 * KIB;
/// The text that goes with a committed offset, bytes.
pub const OFFSET_METADATA_BYTES_MAX: usize = 4 * KIB;
/// Groups of one coordinator, which is one partition of the offsets topic.
pub const GROUPS_PER_COORDINATOR_MAX: usize = 4096;
/// Members of one group.
pub const MEMBERS_PER_GROUP_MAX: usize = 1000;
/// Committed offsets of one group.
pub const OFFSETS_PER_GROUP_MAX: usize = 100_000;
/// Committed offsets of one coordinator.
pub const OFFSETS_PER_COORDINATOR_MAX: usize = 1_000_000;
/// `segment.bytes` of the offsets topic when it is made, bytes. Below the physical size of a segment, because what is
/// appended to is never compacted, and every coordinator reads all of its partition when it starts.
pub const OFFSETS_TOPIC_SEGMENT_BYTES: u64 = 64 * MIB as u64;
/// Silence after which a member is out unless it says otherwise, milliseconds.
pub const SESSION_TIMEOUT_MS_DEFAULT: u32 = 45_000;
/// The shortest that it may say, milliseconds.
pub const SESSION_TIMEOUT_MS_MIN: u32 = 1_000;
/// The longest that it may say, milliseconds.
pub const SESSION_TIMEOUT_MS_MAX: u32 = 1_800_000;
/// How long a member may take to give up partitions unless it says otherwise, milliseconds.
pub const REBALANCE_TIMEOUT_MS_DEFAULT: u32 = 300_000;
/// Between two heartbeats of a member, milliseconds…
pub const HEARTBEAT_INTERVAL_MS: u32 = 1_000;
/// … and while its group moves partitions.
pub const HEARTBEAT_INTERVAL_MOVING_MS: u32 = 100;
/// How long offsets outlive their group's last member, minutes (`offsets.retention.minutes`): 7 days.
pub const OFFSETS_RETENTION_MINUTES_DEFAULT: u64 = 7 * 24 * 60;
/// How often a coordinator looks for expired offsets, milliseconds.
pub const OFFSETS_SWEEP_MS: u64 = 60_000;
/// Offsets that one look drops.
pub const OFFSETS_SWEPT_MAX: usize = 4096;
/// One batch of group records, bytes: a step that makes more is cut into several.
pub const GROUP_BATCH_BYTES_MAX: usize = 512 * KIB;
/// Requests that wait for one coordinator's records to be durable.
pub const GROUP_REQUESTS_WAITING_MAX: usize = 16 * KIB;

/// How long a broker that has just started has questions about topics and the cluster wait for what was decided while it
/// was away, milliseconds since it serves; from then on it refuses those that it cannot answer.
pub const CATCH_UP_PATIENCE_MS: u64 = 1_500;

/// A task that holds a core for so long without yielding is a stall: counted, and named, milliseconds.
pub const STALL_MS: u64 = 50;
/// Stalls that are remembered in words, for each shard.
pub const STALLS_KEPT: usize = 16;

/// Connections to the HTTP port at a time.
pub const HTTP_CONNECTIONS_MAX: usize = 64;
/// The head of an HTTP request.
pub const HTTP_HEAD_BYTES_MAX: usize = 16 * KIB;
/// How long an HTTP client may take for its request's head, milliseconds.
pub const HTTP_HEAD_TIMEOUT_MS: u64 = 5_000;
/// How long metrics and health wait for a shard's answer, milliseconds.
pub const HTTP_SHARD_TIMEOUT_MS: u64 = 2_000;
/// Partitions that have lines of their own in the metrics; of more there are only sums over topics.
pub const METRICS_PARTITIONS_MAX: usize = 1_000;
/// Groups that have lines of their own in the metrics, and, together, partitions of theirs that have.
pub const METRICS_GROUPS_MAX: usize = 1_000;
/// Partitions of groups that the coordinators of one shard list at a time for lag; a group that does not fit is shown
/// without.
pub const LAG_PARTITIONS_MAX: usize = 10_000;
/// Reads of the device by which one question about lag may look for timestamps; the rest is known with the next.
pub const LAG_DEVICE_READS_MAX: usize = 16;
/// Timestamps of first unread records that a shard remembers, so that a group that stands still costs no reads.
pub const LAG_TIMESTAMPS_MAX: usize = 2 * LAG_PARTITIONS_MAX;
/// Questions about lag that a broker has under way to others at a time, of at most [`LAG_PARTITIONS_MAX`] places each;
/// further ones wait.
pub const LAG_QUESTIONS_MAX: usize = 32;
/// How long the answer of another broker about lag is waited for, milliseconds; then it is unknown.
pub const LAG_PEER_TIMEOUT_MS: u64 = 2_000;
/// The same of a broker that did not answer the question before, milliseconds.
pub const LAG_SILENT_PEER_TIMEOUT_MS: u64 = 100;
/// How long that broker waits for its shards, milliseconds: it answers with what it knows by then.
pub const LAG_SHARD_TIMEOUT_MS: u64 = 1_500;
/// What a compressed batch may unpack to for the timestamp of a record inside; of a larger one the batch's first
/// timestamp stands for it, bytes.
pub const LAG_UNPACKED_BYTES_MAX: usize = 4 * MIB;

/// What one shard may hold in memory besides its partitions' state: the sum that `docs/OPERATIONS.md`
/// states and a load with 1,000 partitions is measured against.
pub const SHARD_MEMORY_BYTES_MAX: usize = IN_FLIGHT_BYTES_PER_SHARD_MAX
    + REPLY_BYTES_PER_SHARD_MAX
    + MAILBOX_BYTES_MAX
    + DIRTY_BYTES_PER_SHARD_MAX
    + TAIL_CACHE_BYTES_PER_SHARD
    + READ_AHEAD_BYTES_PER_SHARD
    + COMPACTION_MAP_BYTES_MAX
    // Who looks into a batch does so in one go: compaction keeps one at most while somebody else looks into another.
    + 2 * UNPACKED_BATCH_BYTES_MAX
    + BUFFER_POOL_BYTES
    + RECEIVE_SCRATCH_BYTES;

const _: () = {
    // The longest record of a group fits a batch by itself: a subscription, or the target of a whole topic.
    assert!(SUBSCRIPTION_BYTES_MAX + 8 * KIB <= GROUP_BATCH_BYTES_MAX);
    assert!(GROUP_BATCH_BYTES_MAX <= BATCH_BYTES_DEFAULT);
    // A member is heard several times before its session ends.
    assert!(HEARTBEAT_INTERVAL_MOVING_MS < HEARTBEAT_INTERVAL_MS);
    assert!(SESSION_TIMEOUT_MS_MIN <= SESSION_TIMEOUT_MS_DEFAULT);
    assert!(SESSION_TIMEOUT_MS_DEFAULT <= SESSION_TIMEOUT_MS_MAX);
    // Nothing is asked for again before the answer can be there, nor more often than it is waited for.
    assert!(WATERMARK_DELAY_MS < REOPEN_BACKOFF_MS_MIN && REOPEN_BACKOFF_MS_MIN < REOPEN_BACKOFF_MS_MAX);
    assert!(REOPEN_BACKOFF_MS_MAX < OPEN_TIMEOUT_MS_MAX && ALTER_REFUSED_BACKOFF_MS <= ALTER_RETRY_MS);
    // A follower's epochs, 12 bytes each, fit the metadata of a frame.
    assert!(EPOCHS_NAMED_MAX * 12 * 4 <= FRAME_METADATA_BYTES_MAX);
    // A broker is heard several times before its session ends.
    assert!(4 * BROKER_HEARTBEAT_MS_DEFAULT <= BROKER_SESSION_MS_DEFAULT);
    assert!(REPLICAS_PER_PARTITION_MAX <= BROKERS_MAX);
    assert!(REPLICATION_FACTOR_DEFAULT as usize <= REPLICAS_PER_PARTITION_MAX);
    assert!(OFFSETS_TOPIC_REPLICAS_MAX as usize <= REPLICAS_PER_PARTITION_MAX);
    // A batch that the broker permits fits a frame, a group and a round.
    assert!(BATCH_BYTES_MAX + FRAME_METADATA_BYTES_MAX + 16 <= FRAME_BYTES_MAX);
    assert!(BATCH_BYTES_MAX + BLOCK_BYTES <= GROUP_BYTES_MAX);
    assert!(GROUP_BYTES_MAX <= ROUND_BYTES_MAX);
    assert!(GROUP_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
    // One connection can always finish the frame that it began.
    assert!(FRAME_BYTES_MAX <= IN_FLIGHT_BYTES_PER_CONNECTION_MAX);
    assert!(IN_FLIGHT_BYTES_PER_CONNECTION_MAX <= IN_FLIGHT_BYTES_PER_SHARD_MAX);
    // The largest fetch gets room: a body, and a head of some words for each entry of the largest request.
    assert!(FETCH_BYTES_MAX + 8 * FRAME_METADATA_BYTES_MAX <= REPLY_BYTES_PER_CONNECTION_MAX);
    assert!(REPLY_BYTES_PER_CONNECTION_MAX <= REPLY_BYTES_PER_SHARD_MAX);
    // A fetch can return the largest batch.
    assert!(BATCH_BYTES_MAX <= FETCH_BYTES_MAX);
    // A forwarded frame fits the mailbox.
    assert!(FRAME_BYTES_MAX <= MAILBOX_BYTES_MAX);
    // The window covers everything that a crash can have caught in flight.
    assert!(LOG_IN_FLIGHT_BYTES_MAX >= GROUP_BYTES_MAX && RECOVERY_WINDOW_BYTES >= LOG_IN_FLIGHT_BYTES_MAX);
    assert!(SEGMENT_BYTES_MAX >= 2 * GROUP_BYTES_MAX as u64);
    // A group that compaction writes is one that recovery reads.
    assert!(COMPACTION_GROUP_BYTES + BLOCK_BYTES <= GROUP_BYTES_MAX);
    assert!(ROUNDS_IN_FLIGHT_DEFAULT <= ROUNDS_IN_FLIGHT_MAX);
    assert!(DSYNC_WRITES_DEFAULT <= DSYNC_WRITES_MAX && DSYNC_WRITES_MAX <= ROUND_GROUPS_MAX);
    assert!(WRITE_BYTES_MIN <= WRITE_BYTES_MAX && WRITE_BYTES_MIN.is_multiple_of(BLOCK_BYTES));
    assert!(ROUND_BYTES_MIN <= ROUND_BYTES_MAX && ROUND_BYTES_MIN >= WRITE_BYTES_MAX);
    // A stall is told before it costs clients more than their patience, and before health gives a shard up.
    assert!(STALL_MS < HTTP_SHARD_TIMEOUT_MS && STALL_MS < FRAME_TIMEOUT_MS);
    // The largest head is read with one buffer of the library, whose least is 8 KiB.
    assert!(HTTP_HEAD_BYTES_MAX >= 8 * KIB);
    // A chunk fits a partition's share, a share the credit, and everything under way a stream's queue.
    assert!(CATCH_UP_PUSH_BYTES_MAX <= PUSH_BYTES_MAX);
    assert!(PUSH_BYTES_MAX <= REPLICATION_PARTITION_BYTES_MAX);
    assert!(REPLICATION_PARTITION_BYTES_MAX <= REPLICATION_CATCH_UP_BYTES_MAX);
    assert!(REPLICATION_CATCH_UP_BYTES_MAX <= REPLICATION_LIVE_BYTES_MAX);
    assert!(REPLICATION_LIVE_BYTES_MAX + BATCH_BYTES_MAX < REPLICATION_QUEUE_BYTES_MAX);
    // The largest frame: a full body, one more chunk, and messages of at most 64 bytes.
    assert!(REPLICATION_FRAME_MESSAGES_MAX * 64 < FRAME_METADATA_BYTES_MAX);
    assert!(REPLICATION_FRAME_BODY_BYTES + BATCH_BYTES_MAX + FRAME_METADATA_BYTES_MAX <= FRAME_BYTES_MAX);
    assert!(EPOCHS_NAMED_MAX < REPLICATION_FRAME_MESSAGES_MAX);
    // What a shard lists fits twice into what it remembers: one round of questions does not push itself out.
    assert!(LAG_TIMESTAMPS_MAX >= 2 * LAG_PARTITIONS_MAX && METRICS_PARTITIONS_MAX <= LAG_PARTITIONS_MAX);
    assert!(LAG_UNPACKED_BYTES_MAX <= UNPACKED_BATCH_BYTES_MAX);
    // An answer without a shard's share comes in time, and a question, 32 bytes a place, fits a frame.
    assert!(LAG_SHARD_TIMEOUT_MS < LAG_PEER_TIMEOUT_MS && LAG_PEER_TIMEOUT_MS <= HTTP_SHARD_TIMEOUT_MS);
    assert!(32 * LAG_PARTITIONS_MAX + 1_024 <= FRAME_METADATA_BYTES_MAX);
    assert!(WRITE_BYTES_MAX.is_multiple_of(BLOCK_BYTES) && PREWRITE_CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));
};
