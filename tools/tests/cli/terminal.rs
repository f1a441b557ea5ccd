//! dsmove on a terminal: the bar, and the question that Ctrl-C asks. The terminal is made by
//! script(1).

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use proto::control::{ApiErrorCode, MovePhase};

use crate::fake_dshost::{Answer, FakeDshost, done, ended, to_json, vm42};

const START: &str = "POST /v1/moves";
const EVENTS: &str = "GET /v1/moves/11111111-2222-4333-8444-555555555555/events";
const CANCEL: &str = "POST /v1/moves/11111111-2222-4333-8444-555555555555/cancel";
const CTRL_C: &str = "\x03";

struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
}

impl Terminal {
    fn dsmove(host: &FakeDshost, extra: &str) -> Self {
        let line = format!("stty cols 80; exec {} vm42 --to ds2 {extra}", env!("CARGO_BIN_EXE_dsmove"));
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("GODWIT_RUN", host.run.path())
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Terminal { child, keys, screen }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Read what is drawn until `text` appears; returns all of it.
    fn until(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let mut byte = [0];
        loop {
            let n = self.screen.read(&mut byte).unwrap();
            assert!(n > 0, "the end instead of {text:?}: {}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
            if seen.ends_with(text.as_bytes()) {
                return String::from_utf8_lossy(&seen).into_owned();
            }
        }
    }

    fn end(mut self) -> (String, Option<i32>) {
        let mut rest = Vec::new();
        self.screen.read_to_end(&mut rest).unwrap();
        (String::from_utf8_lossy(&rest).into_owned(), self.child.wait().unwrap().code())
    }
}

fn moving(more: Vec<(&'static str, Answer)>) -> FakeDshost {
    let mut script = vec![
        (START, Answer::Json(201, to_json(&vm42(MovePhase::Preparing)))),
        (EVENTS, Answer::Hang(vec![to_json(&vm42(MovePhase::Bulk))])),
    ];
    script.extend(more);
    FakeDshost::start(script)
}

#[test]
fn a_bar_shows_the_move() {
    let host = moving(vec![]);
    let mut terminal = Terminal::dsmove(&host, "");
    let drawn = terminal.until("]  25%");
    let bar = "vm42 from ds1 to ds2: bulk       [==========>                             ]  25%";
    assert!(drawn.ends_with(bar), "{drawn:?}");
    terminal.until("1.0 GiB of 4.0 GiB, 100.0 MiB/s, ETA 0:31, dirty 2.0 MiB/s");
    terminal.press(CTRL_C);
    terminal.until("go on (g)? ");
    terminal.press("l\n");
    terminal.end();
}

#[test]
fn ctrl_c_asks_and_the_move_is_left_running() {
    let host = moving(vec![]);
    let mut terminal = Terminal::dsmove(&host, "");
    terminal.until("25%");
    terminal.press(CTRL_C);
    terminal.until("cancel the move (c), leave it running (l), or go on (g)? ");
    terminal.press("what\n");
    terminal.until("go on (g)? ");
    terminal.press("g\n");
    terminal.until("25%");
    terminal.press(CTRL_C);
    terminal.until("go on (g)? ");
    terminal.press("l\n");
    let (screen, code) = terminal.end();
    assert!(screen.contains("vm42 moves from ds1/vm42 to ds2/vm42"), "{screen:?}");
    assert_eq!((code, host.lines()), (Some(0), vec![START.into(), EVENTS.to_string()]));
}

#[test]
fn ctrl_c_asks_and_the_move_is_cancelled() {
    let cancelled = ended(MovePhase::Cancelled, ApiErrorCode::Cancelled, "by request", None);
    for keys in ["c\n", CTRL_C] {
        let host = moving(vec![(CANCEL, Answer::Json(200, to_json(&cancelled)))]);
        let mut terminal = Terminal::dsmove(&host, "");
        terminal.until("25%");
        terminal.press(CTRL_C);
        terminal.until("go on (g)? ");
        terminal.press(keys);
        let (screen, code) = terminal.end();
        assert!(screen.ends_with("cancelled: by request\r\n"), "{screen:?}");
        assert_eq!(code, Some(4));
    }
}

#[test]
fn with_yes_ctrl_c_cancels_unasked() {
    let cancelled = ended(MovePhase::Cancelled, ApiErrorCode::Cancelled, "by request", None);
    let host = moving(vec![(CANCEL, Answer::Json(200, to_json(&cancelled)))]);
    let mut terminal = Terminal::dsmove(&host, "--yes");
    terminal.until("25%");
    terminal.press(CTRL_C);
    let (screen, code) = terminal.end();
    assert!(!screen.contains("go on (g)?"), "{screen:?}");
    assert_eq!(code, Some(4));
}

#[test]
fn a_move_that_ends_while_asked_is_reported() {
    let host = moving(vec![(EVENTS, Answer::Events { events: vec![to_json(&done())], broken: false })]);
    let mut terminal = Terminal::dsmove(&host, "");
    terminal.until("25%");
    terminal.press(CTRL_C);
    terminal.until("go on (g)? ");
    host.release();
    let (screen, code) = terminal.end();
    assert!(screen.contains("moved vm42 from ds1 to ds2"), "{screen:?}");
    assert_eq!(code, Some(0));
}
