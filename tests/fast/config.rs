//! Tests of the configuration: which source wins, which values are refused, and what the errors say.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use streaming_server::config::{Config, ConfigError, Parsed, SrtpChoice, Tls, Wake, Workers};

/// Parses flags, environment and configuration file. An empty `file` means that the file does not exist.
fn parse(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Parsed, ConfigError> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    Config::from_args(
        args.iter().map(OsString::from),
        |name| env.get(name).map(OsString::from),
        |path: &Path| {
            if file.is_empty() {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            assert_eq!(path, Path::new("server.toml"));
            Ok(file.to_owned())
        },
    )
}

fn run(args: &[&str], env: &[(&str, &str)], file: &str) -> Config {
    match parse(args, env, file).unwrap_or_else(|error| panic!("{error}")) {
        Parsed::Run(config) => *config,
        Parsed::Print(text) => panic!("{text}"),
    }
}

fn error(args: &[&str], env: &[(&str, &str)], file: &str) -> String {
    match parse(args, env, file) {
        Ok(parsed) => panic!("{args:?} {env:?} {file:?} gave {parsed:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn without_options_the_documented_defaults_hold() {
    let config = run(&[], &[], "");
    assert_eq!(config, Config::default());
    assert_eq!(config.shm.as_str(), "/pet_camera_stream");
    assert_eq!(config.http.to_string(), "0.0.0.0:8080");
    assert_eq!(config.udp.to_string(), "0.0.0.0:8189");
    assert_eq!(config.max_viewers, 32);
    assert_eq!(config.workers, Workers::Auto);
    assert_eq!(config.log_level, log::LevelFilter::Info);
    assert_eq!(config.to_string(), "", "defaults are not printed");
}

#[test]
fn every_option_can_be_given_by_flag() {
    let config = run(
        &[
            "--shm",
            "/front",
            "--http",
            ":8081",
            "--udp=[::1]:9000",
            "--advertise",
            "203.0.113.7",
            "--advertise",
            "[2001:db8::7]:8190",
            "--max-viewers",
            "100",
            "--workers",
            "2",
            "--wake",
            "poll",
            "--realtime",
            "--min-kbps",
            "500",
            "--allow-origin",
            "https://Home.Example",
            "--allow-origin",
            "http://10.0.0.1:3000",
            "--log-level",
            "warn",
            "--srtp",
            "gcm",
            "--demo",
        ],
        &[],
        "",
    );
    let printed = "shm = /front\nwake = poll\nrealtime = true\nmin-kbps = 500\ndemo = true\nhttp = 0.0.0.0:8081\nudp = [::1]:9000\n\
                   advertise = 203.0.113.7, [2001:db8::7]:8190\n\
                   allow-origin = https://home.example, http://10.0.0.1:3000\nmax-viewers = 100\nworkers = 2\n\
                   srtp = gcm\nlog-level = warn\n";
    assert_eq!(config.to_string(), printed);
    let addresses: Vec<String> =
        config.advertise.iter().map(|address| address.with_port(8189).to_string()).collect();
    assert_eq!(addresses, ["203.0.113.7:8189", "[2001:db8::7]:8190"]);
}

#[test]
fn environment_and_file_accept_the_same_options_as_flags() {
    let flags = run(
        &["--max-viewers", "5", "--srtp", "cm", "--realtime", "--advertise", "1.2.3.4", "--advertise", "::2"],
        &[],
        "",
    );
    let environment = [
        ("STREAMING_MAX_VIEWERS", "5"),
        ("STREAMING_SRTP", "cm"),
        ("STREAMING_REALTIME", "yes"),
        ("STREAMING_ADVERTISE", "1.2.3.4, ::2"),
    ];
    assert_eq!(run(&[], &environment, ""), flags);
    let file = "max-viewers = 5\nsrtp = \"cm\"\nrealtime = true\nadvertise = [\"1.2.3.4\", \"::2\"]\n";
    assert_eq!(run(&["--config", "server.toml"], &[], file), flags);
    assert_eq!(run(&[], &[("STREAMING_CONFIG", "server.toml")], file), flags);
    assert_eq!(run(&["--config", "server.toml"], &[], &file.replace('-', "_")), flags);
}

#[test]
fn flags_override_the_environment_and_the_environment_overrides_the_file() {
    let file = "http = 1001\nudp = 1002\nwake = \"semaphore\"\nadvertise = [\"9.9.9.9\"]\nrealtime = true\n";
    let environment =
        [("STREAMING_UDP", "2002"), ("STREAMING_WAKE", "auto"), ("STREAMING_ADVERTISE", "8.8.8.8")];
    let args = ["--config", "server.toml", "--wake", "poll", "--realtime=false"];
    let config = run(&args, &environment, file);
    assert_eq!((config.http.port(), config.udp.port()), (1001, 2002));
    assert_eq!(config.wake, Wake::Poll);
    assert_eq!(config.advertise.iter().map(ToString::to_string).collect::<Vec<_>>(), ["8.8.8.8"]);
    assert!(!config.realtime);
    assert_eq!(config.srtp, SrtpChoice::Auto);
}

#[test]
fn last_repeated_flag_wins_and_empty_variable_is_ignored() {
    assert_eq!(run(&["--max-viewers", "1", "--max-viewers", "2"], &[], "").max_viewers, 2);
    assert_eq!(run(&[], &[("STREAMING_MAX_VIEWERS", "")], "").max_viewers, 32);
}

#[test]
fn addresses_may_be_abbreviated() {
    for (text, address) in [
        ("8081", "0.0.0.0:8081"),
        (":8081", "0.0.0.0:8081"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("localhost:80", "127.0.0.1:80"),
        ("[::]:8080", "[::]:8080"),
    ] {
        assert_eq!(run(&["--http", text], &[], "").http.to_string(), address);
    }
}

#[test]
fn control_address_must_be_loopback_or_off() {
    for (text, printed) in [
        ("off", "control = off\n"),
        ("6061", "control = 127.0.0.1:6061\n"),
        (":6061", "control = 127.0.0.1:6061\n"),
        ("[::1]:6060", "control = [::1]:6060\n"),
        ("127.0.0.1:6060", ""),
    ] {
        assert_eq!(run(&["--control", text], &[], "").to_string(), printed);
    }
}

#[test]
fn bad_value_errors_name_option_value_and_what_is_accepted() {
    for (flag, bad, expected) in [
        ("--http", "nowhere", "IP:PORT"),
        ("--http", "127.0.0.1", "IP:PORT"),
        ("--http", "1.2.3.4:70000", "IP:PORT"),
        ("--control", "0.0.0.0:6060", "loopback"),
        ("--control", "192.0.2.2:6060", "loopback"),
        ("--control", "nowhere", "loopback"),
        ("--udp", "70000", "IP:PORT"),
        ("--udp", "", "IP:PORT"),
        ("--shm", "camera", "leading slash"),
        ("--shm", "/a/b", "leading slash"),
        ("--shm", "/", "leading slash"),
        ("--shm", "/..", "leading slash"),
        ("--advertise", "0.0.0.0", "IP or IP:PORT"),
        ("--advertise", "home.example", "IP or IP:PORT"),
        ("--advertise", "224.0.0.1", "IP or IP:PORT"),
        ("--advertise", "1.2.3.4:0", "IP or IP:PORT"),
        ("--max-viewers", "0", "from 1 to 1024"),
        ("--max-viewers", "1025", "from 1 to 1024"),
        ("--max-viewers", "-1", "from 1 to 1024"),
        ("--min-kbps", "0", "from 100 to 100000"),
        ("--min-kbps", "100001", "from 100 to 100000"),
        ("--min-kbps", "1M", "from 100 to 100000"),
        ("--workers", "0", "\"auto\" or a number"),
        ("--workers", "many", "\"auto\" or a number"),
        ("--wake", "futex", "auto, semaphore or poll"),
        ("--srtp", "chacha", "auto, gcm or cm"),
        ("--allow-origin", "*", "https://home.example"),
        ("--allow-origin", "https://home.example/", "https://home.example"),
        ("--allow-origin", "null", "https://home.example"),
        ("--log-level", "loud", "off, error, warn"),
    ] {
        let message = error(&[flag, bad], &[], "");
        assert!(message.starts_with(&format!("{flag}: \"{bad}\" is not valid: expected ")), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let long = format!("/{}", "x".repeat(255));
    assert!(error(&["--shm", &long], &[], "").contains("255 bytes at most"));
    assert!(error(&["--realtime=maybe"], &[], "").contains("expected true or false"));
}

#[test]
fn bad_value_errors_name_the_source() {
    let message = error(&[], &[("STREAMING_UDP", "x")], "");
    assert!(message.starts_with("STREAMING_UDP (environment): \"x\""), "{message}");
    let message = error(&["--config", "server.toml"], &[], "udp = \"x\"\n");
    assert!(message.starts_with("udp (server.toml): \"x\""), "{message}");
}

#[test]
fn unknown_options_are_refused_with_a_suggestion() {
    assert_eq!(
        error(&["--max-viewer", "3"], &[], ""),
        "unknown option --max-viewer (did you mean --max-viewers?); see --help"
    );
    assert_eq!(error(&["--htpt", "3"], &[], ""), "unknown option --htpt (did you mean --http?); see --help");
    assert_eq!(error(&["--password", "x"], &[], ""), "unknown option --password; see --help");
    assert_eq!(error(&["-x"], &[], ""), "unknown option -x; see --help");
    assert!(error(&["serve"], &[], "").starts_with("unexpected argument \"serve\""));
    assert!(error(&["--http"], &[], "").contains("--http"));
    let message = error(&["--config", "server.toml"], &[], "max-viewrs = 3\n");
    assert_eq!(message, "server.toml: unknown key \"max-viewrs\" (did you mean max-viewers?)");
    assert!(error(&["--config", "server.toml"], &[], "config = \"x\"\n").contains("unknown key"));
}

#[test]
fn bad_file_errors_name_file_and_reason() {
    let message = error(&["--config", "gone.toml"], &[], "");
    assert!(message.starts_with("--config: cannot read gone.toml: "), "{message}");
    let message = error(&["--config", "server.toml"], &[], "http = \n");
    assert!(message.starts_with("server.toml: not valid TOML: "), "{message}");
    assert!(message.contains("line 1"), "{message}");
    for (file, expected) in [
        ("udp = true\n", "expected a string or a number"),
        ("realtime = 1\n", "expected true or false"),
        ("advertise = [1]\n", "expected a list of strings"),
        ("http = [\"1\"]\n", "expected a string or a number"),
        ("http = 1.5\n", "expected a string or a number"),
        ("[http]\nport = 1\n", "expected a string or a number"),
    ] {
        let message = error(&["--config", "server.toml"], &[], file);
        assert!(message.contains(expected), "{file}: {message}");
    }
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    let args = [OsString::from("--shm"), OsString::from_vec(vec![b'/', 0xff])];
    let parsed = Config::from_args(args, |_| None, |_| Err(io::Error::from(io::ErrorKind::NotFound)));
    assert!(parsed.unwrap_err().to_string().contains("expected UTF-8 text"));
}

#[test]
fn help_and_version_override_all_other_arguments() {
    for args in [["--help", "--nonsense"], ["-h", "--nonsense"]] {
        let Ok(Parsed::Print(text)) = parse(&args, &[("STREAMING_UDP", "x")], "") else { panic!("no help") };
        for part in ["--max-viewers", "STREAMING_MAX_VIEWERS", "--demo", "Examples:", "default 0.0.0.0:8080"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    let Ok(Parsed::Print(text)) = parse(&["--version"], &[], "") else { panic!("no version") };
    assert_eq!(text, format!("streaming-server {}\n", env!("CARGO_PKG_VERSION")));
}

const TOKEN: &str = "0123456789abcdef0123";

#[test]
fn token_and_tls_are_read_from_every_source_and_the_token_is_never_printed() {
    let flags =
        ["--token", TOKEN, "--tls-cert", "c.pem", "--tls-key", "k.pem", "--allow-host", "Cam.Example"];
    let config = run(&[&flags[..], &["--http-plain", ":8081"]].concat(), &[], "");
    assert!(config.token.as_ref().unwrap().is(TOKEN.as_bytes()));
    let printed = "token = given, not shown\ntls-cert = c.pem\ntls-key = k.pem\nhttp-plain = 0.0.0.0:8081\n\
                   allow-host = cam.example\n";
    assert_eq!(config.to_string(), printed);
    assert!(!format!("{config:?}").contains(TOKEN));
    let environment = [
        ("STREAMING_TOKEN", TOKEN),
        ("STREAMING_TLS_CERT", "c.pem"),
        ("STREAMING_TLS_KEY", "k.pem"),
        ("STREAMING_HTTP_PLAIN", "8081"),
        ("STREAMING_ALLOW_HOST", "cam.example"),
    ];
    assert_eq!(run(&[], &environment, ""), config);
    let file = format!(
        "token = \"{TOKEN}\"\ntls-cert = \"c.pem\"\ntls-key = \"k.pem\"\nhttp-plain = 8081\n\
         allow-host = [\"cam.example\"]\n"
    );
    assert_eq!(run(&["--config", "server.toml"], &[], &file), config);
    let other = run(&["--token", "another-token-than-that"], &environment, "");
    assert!(!other.token.unwrap().is(TOKEN.as_bytes()), "the flag wins");
}

#[test]
fn token_file_holds_the_token_in_its_first_line() {
    let text = format!("{TOKEN}\r\nrest\n");
    let with_file = run(&["--token-file", "server.toml"], &[], &text);
    assert!(with_file.token.unwrap().is(TOKEN.as_bytes()));
    let message = error(&["--token-file", "server.toml"], &[], "topsecret\n");
    assert!(message.starts_with("--token-file: not valid: expected 16 to 256"), "{message}");
    assert!(!message.contains("topsecret"), "{message}");
    let missing = error(&["--token-file", "server.toml"], &[], "");
    assert!(missing.starts_with("--token-file: cannot read server.toml"), "{missing}");
    let both = error(&["--token-file", "server.toml"], &[("STREAMING_TOKEN", TOKEN)], &text);
    assert!(both.contains("exclude each other"), "{both}");
}

#[test]
fn self_signed_certificate_is_stored_in_the_state_directory() {
    let directory =
        |args: &[&str], env: &[(&str, &str)]| match run(&[args, &["--tls-self-signed"]].concat(), env, "")
            .tls
            .unwrap()
        {
            Tls::SelfSigned { directory } => directory.display().to_string(),
            tls => panic!("{tls:?}"),
        };
    assert_eq!(directory(&["--state-path", "/a"], &[("HOME", "/h")]), "/a");
    assert_eq!(directory(&[], &[("HOME", "/h")]), "/h/.local/state/streaming-server");
    assert_eq!(directory(&[], &[("STATE_DIRECTORY", "/v"), ("HOME", "/h")]), "/v");
    assert!(error(&["--tls-self-signed"], &[], "").contains("--state-path"));
}

#[test]
fn whip_options_belong_together_and_hold_no_secret() {
    let read = |_: &Path| Ok("a.signed.token\nsecond line\n".to_owned());
    let parse = |args: &[&str]| Config::from_args(args.iter().map(OsString::from), |_| None, read);
    let given =
        ["--whip", "https://media.example/a/whip", "--whip-token-file", "token", "--whip-ca", "ca.pem"];
    let Ok(Parsed::Run(config)) = parse(&given) else { panic!("refused") };
    let whip = config.whip.clone().unwrap();
    assert_eq!(whip.token.unwrap().expose(), b"a.signed.token");
    assert_eq!(whip.url.to_string(), "https://media.example/a/whip");
    let printed = config.to_string();
    assert!(printed.contains("whip = https://media.example/a/whip\n"), "{printed}");
    assert!(printed.contains("whip-ca = ca.pem\n") && !printed.contains("signed"), "{printed}");
    for (args, part) in [
        (&["--whip-ca", "ca.pem"][..], "--whip-ca needs --whip"),
        (&["--whip-token-file", "token"], "--whip-token-file needs --whip"),
        (&["--whip", "rtsp://media.example/"], "expected a URL such as https://"),
        (&["--whip", "https://me:secret@media.example/"], "--whip-token-file"),
    ] {
        let error = parse(args).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("secret"), "{error}");
    }
}
