//! Tests of the script's text format: round trip, a naive twin for the times, bounds, and the line in each error.

use proptest::prelude::*;

use super::*;

fn problem_of(text: &str) -> (usize, Problem) {
    let error = text.parse::<Script>().unwrap_err();
    (error.line, error.problem)
}

fn only_slot(line: &str) -> SlotChanges {
    let script: Script = line.parse().unwrap();
    match &script.entries[0].command {
        Command::Unit { slot, .. } | Command::Stream { slot, .. } => *slot,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_command_and_key_is_read() {
    let text = "
        # a comment
        wait file:go            # another one
        loop 3
          unit hex:000000010900 gap=1.5ms stamp=-40ms frame=18446744073709551615 format=3 data_size=0
          unit file:sets.bin@4+20 stamp_s=-1 stamp_ns=2000000000 width=-1 height=0 camera=7
          stream a.h264 units=2..5 gap=0s
        end
        clock -5s
        wait 2s
        wait stop";
    let script: Script = text.parse().unwrap();
    let lines: Vec<usize> = script.entries.iter().map(|entry| entry.line).collect();
    assert_eq!(lines, [3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let commands: Vec<&Command> = script.entries.iter().map(|entry| &entry.command).collect();
    assert_eq!(commands[0], &Command::Wait(Wait::File("go".to_owned())));
    assert_eq!(commands[1], &Command::Loop(Some(3)));
    let slot = SlotChanges {
        gap_ns: Some(1_500_000),
        stamp_offset_ns: Some(-40_000_000),
        frame_number: Some(u64::MAX),
        format: Some(3),
        data_bytes: Some(0),
        ..SlotChanges::default()
    };
    let payload = Payload::Bytes(vec![0, 0, 0, 1, 9, 0]);
    assert_eq!(commands[2], &Command::Unit { payload, slot });
    let slot = SlotChanges {
        stamp_s: Some(-1),
        stamp_ns: Some(2_000_000_000),
        width: Some(-1),
        height: Some(0),
        camera_id: Some(7),
        ..SlotChanges::default()
    };
    let payload = Payload::File { path: "sets.bin".to_owned(), range: Some(4..24) };
    assert_eq!(commands[3], &Command::Unit { payload, slot });
    let slot = SlotChanges { gap_ns: Some(0), ..SlotChanges::default() };
    assert_eq!(commands[4], &Command::Stream { path: "a.h264".to_owned(), units: Some(2..5), slot });
    assert_eq!(
        commands[5..],
        [
            &Command::End,
            &Command::Clock(-5_000_000_000),
            &Command::Wait(Wait::For(2_000_000_000)),
            &Command::Wait(Wait::Stop)
        ]
    );
}

#[test]
fn an_error_names_its_line_and_its_word() {
    let cases = [
        ("unit hex:00\nplay x", 2, "play"),
        ("unit", 1, "hex:BYTES"),
        ("unit 00", 1, "00"),
        ("unit hex:0", 1, "hex:0"),
        ("unit hex:0g", 1, "hex:0g"),
        ("unit hex:é0", 1, "hex:é0"),
        ("unit file:", 1, "file:"),
        ("unit file:a@1", 1, "a@1"),
        ("unit file:a@1+x", 1, "a@1+x"),
        ("unit file:a@18446744073709551615+1", 1, "file:a@"),
        ("unit hex:00 gap", 1, "gap"),
        ("unit hex:00 gap=1", 1, "an hour"),
        ("unit hex:00 gap=-1ms", 1, "an hour"),
        ("unit hex:00 gap=1.ms", 1, "1.ms"),
        ("unit hex:00 gap=.5ms", 1, ".5ms"),
        ("unit hex:00 gap=1h", 1, "1h"),
        ("unit hex:00 gap=3600.1s", 1, "an hour"),
        ("unit hex:00 stamp=1e3s", 1, "1e3s"),
        ("unit hex:00 stamp=--1s", 1, "--1s"),
        ("unit hex:00 stamp=9999999999s", 1, "a hundred years"),
        ("unit hex:00 gap=1ms gap=1ms", 1, "twice"),
        ("unit hex:00 frame=-1", 1, "frame=-1"),
        ("unit hex:00 width=2147483648", 1, "width="),
        ("unit hex:00 units=0..1", 1, "units=0..1"),
        ("unit hex:00 colour=1", 1, "colour=1"),
        ("stream", 1, "path"),
        ("stream a units=3..3", 1, "3..3"),
        ("stream a units=1", 1, "FROM..TO"),
        ("clock", 1, "clock"),
        ("clock 1s 2s", 1, "2s"),
        ("wait", 1, "wait"),
        ("wait file:", 1, "file:"),
        ("wait soon", 1, "soon"),
        ("loop 0\nunit hex:00\nend", 1, "at least 1"),
        ("unit hex:00\nend", 2, "without"),
        ("unit hex:00\n\nloop\nunit hex:00", 3, "without"),
        ("unit hex:00\nloop\nclock 1s\nend", 2, "needs"),
        ("", 1, "at least one unit"),
        ("# only a comment\nwait 1s", 2, "at least one unit"),
    ];
    for (text, line, part) in cases {
        let error = text.parse::<Script>().unwrap_err();
        let message = error.to_string();
        assert_eq!(error.line, line, "{text:?}: {message}");
        assert!(message.starts_with(&format!("line {line}: ")) && message.contains(part), "{message}");
        assert!(message.len() < 200, "a long word is shortened: {message}");
    }
}

#[test]
fn bounds_are_checked() {
    let nested = |depth: usize| format!("{}unit hex:00\n{}", "loop 2\n".repeat(depth), "end\n".repeat(depth));
    assert!(nested(LOOP_DEPTH_MAX).parse::<Script>().is_ok());
    assert_eq!(problem_of(&nested(LOOP_DEPTH_MAX + 1)), (LOOP_DEPTH_MAX + 1, Problem::LoopDepth));
    assert!("unit hex:00\n".repeat(LINES_MAX).parse::<Script>().is_ok());
    let too_long = "unit hex:00\n".repeat(LINES_MAX + 1);
    assert_eq!(problem_of(&too_long), (LINES_MAX + 1, Problem::TooManyLines));
    assert_eq!(only_slot("unit hex:00 gap=3600s").gap_ns, Some(PAUSE_NS_MAX));
    assert_eq!(only_slot("unit hex:00 stamp=-3155760000s").stamp_offset_ns, Some(-STEP_NS_MAX));
    let huge = format!("unit hex:00 stamp={}s", "9".repeat(1000));
    assert!(matches!(problem_of(&huge), (1, Problem::Value { .. })));
}

#[test]
fn times_below_a_nanosecond_are_cut_off() {
    for (text, ns) in [("0.0000000019s", 1), ("1.0000000019ms", 1_000_000), ("0.9ns", 0), ("+7us", 7_000)] {
        assert_eq!(only_slot(&format!("unit hex: gap={text}")).gap_ns, Some(ns), "{text}");
    }
}

fn path() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_./-]{1,12}"
}

fn slot_changes() -> impl Strategy<Value = SlotChanges> {
    let times = (prop::option::of(0..=PAUSE_NS_MAX), prop::option::of(-STEP_NS_MAX..=STEP_NS_MAX));
    (times, any::<[Option<i64>; 2]>(), any::<[Option<u64>; 2]>(), any::<[Option<i32>; 4]>()).prop_map(
        |((gap_ns, stamp_offset_ns), [stamp_s, stamp_ns], [frame_number, data_bytes], rest)| {
            let [format, width, height, camera_id] = rest;
            SlotChanges {
                gap_ns,
                stamp_offset_ns,
                stamp_s,
                stamp_ns,
                frame_number,
                format,
                data_bytes,
                width,
                height,
                camera_id,
            }
        },
    )
}

/// Commands that need no other command.
fn command() -> impl Strategy<Value = Command> {
    let range =
        || prop::option::of((0..1000_usize, 1..1000_usize).prop_map(|(from, count)| from..from + count));
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Payload::Bytes),
        (path(), range()).prop_map(|(path, range)| Payload::File { path, range }),
    ];
    prop_oneof![
        (payload, slot_changes()).prop_map(|(payload, slot)| Command::Unit { payload, slot }),
        (path(), range(), slot_changes()).prop_map(|(path, units, slot)| Command::Stream {
            path,
            units,
            slot
        }),
        (-STEP_NS_MAX..=STEP_NS_MAX).prop_map(Command::Clock),
        (0..=PAUSE_NS_MAX).prop_map(|ns| Command::Wait(Wait::For(ns))),
        path().prop_map(|path| Command::Wait(Wait::File(path))),
        Just(Command::Wait(Wait::Stop)),
    ]
}

/// A script with at least one unit, and possibly a loop around some of its lines.
fn script() -> impl Strategy<Value = Script> {
    let times = prop::option::of(prop::option::of(1..100_u64));
    (prop::collection::vec(command(), 0..12), times, slot_changes()).prop_map(
        |(mut commands, times, slot)| {
            commands.push(Command::Unit { payload: Payload::Bytes(vec![0]), slot });
            if let Some(times) = times {
                commands.insert(commands.len() / 2, Command::Loop(times));
                commands.push(Command::End);
            }
            let entries = (1..).zip(commands).map(|(line, command)| Entry { line, command }).collect();
            Script { entries }
        },
    )
}

proptest! {
    #![proptest_config(support::properties())]

    #[test]
    fn a_written_script_is_read_back(script in script()) {
        prop_assert_eq!(script.to_string().parse::<Script>(), Ok(script));
    }

    #[test]
    fn times_equal_those_of_a_floating_point_reader(
        number in "[0-9]{1,4}(\\.[0-9]{1,3})?",
        unit in prop::sample::select(vec![("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0)]),
    ) {
        #[expect(clippy::cast_possible_truncation, reason = "less than 10,000 seconds")]
        let expected = {
            let value = number.parse::<f64>().unwrap() * unit.1;
            // Only nanoseconds can have a fraction, which is cut off. All other values differ by rounding errors only.
            if unit.0 == "ns" { value.floor() as i64 } else { value.round() as i64 }
        };
        let read = only_slot(&format!("unit hex: stamp=-{number}{}", unit.0)).stamp_offset_ns;
        prop_assert_eq!(read, Some(-expected));
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_line_that_exists(text in "([a-z]{0,6}[ =:.+@#0-9-]{0,3}){0,6}(\n[^\r]{0,20}){0,4}") {
        if let Err(error) = text.parse::<Script>() {
            prop_assert!((1..=text.lines().count().max(1)).contains(&error.line), "{error}");
        }
    }
}
