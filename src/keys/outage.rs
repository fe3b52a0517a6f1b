//! Fetching a key at start-up, when its manager may be away: several references in order, tried again for a while.

use std::error::Error;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use tracing::{info, warn};

use super::{KeyError, KeySource, Secret};

/// Before the second attempt; doubled before each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// At most this long between two attempts, so that a manager which is back is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Fetches the first key of `sources` that there is, and says which one it is.
///
/// They are asked in order. One that is [not found](KeyError::NotFound) or
/// [unreachable](KeyError::Unreachable) is passed over; any other failure is an answer that somebody has to look at, and
/// ends the search. When none of them gave a key and at least one could not be reached, all are asked again after a
/// wait that grows from attempt to attempt and is partly random (hosts that lost their manager together do not come back
/// to it together), until `patience` is over; the last attempt is made then. Each failed attempt is logged.
///
/// # Errors
/// What ended the search; else that of the first source which could not be reached, else of the first one.
///
/// # Panics
/// When `sources` is empty.
pub fn fetch_first(sources: &[KeySource], patience: Duration) -> Result<(Secret, &KeySource), KeyError> {
    assert!(!sources.is_empty(), "there is a key to fetch");
    fetch_patiently(sources, patience, &mut SystemClock { start: Instant::now() })
}

/// Time as it passes for a search.
trait Clock {
    /// Since the search began.
    fn elapsed(&self) -> Duration;
    /// Lets time pass. A signal that ends the process ends this too.
    fn wait(&mut self, time: Duration);
    /// Any number.
    fn random(&mut self) -> u32;
}

fn fetch_patiently<'a>(
    sources: &'a [KeySource],
    patience: Duration,
    clock: &mut impl Clock,
) -> Result<(Secret, &'a KeySource), KeyError> {
    let mut longest_wait = FIRST_WAIT;
    for attempt in 1_u64.. {
        let error = match fetch_once(sources) {
            Err(error @ KeyError::Unreachable { .. }) => error,
            settled => return settled,
        };
        let left = patience.saturating_sub(clock.elapsed());
        if left.is_zero() {
            if !patience.is_zero() {
                let patience_seconds = patience.as_secs();
                warn!(attempt, patience_seconds, "giving up: no key could be reached (see --key-timeout)");
            }
            return Err(error);
        }
        let wait = partly_random(longest_wait, clock.random()).min(left);
        let wait_seconds = format!("{:.1}", wait.as_secs_f64());
        warn!(attempt, wait_seconds, error = with_causes(&error), "no key could be reached; trying again");
        clock.wait(wait);
        longest_wait = LONGEST_WAIT.min(2 * longest_wait);
    }
    unreachable!("nobody waits that often")
}

/// Asks each source once, in order, until one has an answer.
fn fetch_once(sources: &[KeySource]) -> Result<(Secret, &KeySource), KeyError> {
    let mut passed_over: Option<KeyError> = None;
    for (index, source) in sources.iter().enumerate() {
        let error = match source.fetch() {
            Ok(secret) => {
                if sources.len() > 1 {
                    info!(key = %source.reference(), "key fetched");
                }
                return Ok((secret, source));
            }
            Err(error @ (KeyError::NotFound { .. } | KeyError::Unreachable { .. })) => error,
            Err(refusal) => return Err(refusal),
        };
        if index + 1 < sources.len() {
            warn!(error = with_causes(&error), "trying the next key");
        }
        let is_more_hopeful = matches!(error, KeyError::Unreachable { .. })
            && !matches!(passed_over, Some(KeyError::Unreachable { .. }));
        if passed_over.is_none() || is_more_hopeful {
            passed_over = Some(error);
        }
    }
    Err(passed_over.expect("at least one source failed"))
}

/// Between half of `longest` and all of it.
fn partly_random(longest: Duration, random: u32) -> Duration {
    let half = longest / 2;
    half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// An error and what caused it, as one text.
fn with_causes(error: &KeyError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").expect("a string takes any text");
        cause = error.source();
    }
    text
}

struct SystemClock {
    start: Instant,
}

impl Clock for SystemClock {
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn wait(&mut self, time: Duration) {
        thread::sleep(time);
    }

    fn random(&mut self) -> u32 {
        let mut bytes = [0; 4];
        // Without random numbers, as early in a boot, the wait is merely not random.
        let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
        u32::from_ne_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use super::*;
    use crate::keys::{KeyId, KeyManager, KeyReference};

    /// Answers from a script, and notes who was asked.
    struct Scripted {
        answers: RefCell<VecDeque<Answer>>,
        asked: Rc<RefCell<Vec<String>>>,
    }

    #[derive(Clone, Copy)]
    enum Answer {
        Key,
        Missing,
        Away,
        Refused,
        Malformed,
    }
    use Answer::{Away, Key, Malformed, Missing, Refused};

    impl KeyManager for Scripted {
        fn fetch(&self, id: &KeyId) -> Result<Secret, KeyError> {
            self.asked.borrow_mut().push(id.name().to_owned());
            let key: KeyReference = format!("file:{id}").parse().unwrap();
            match self.answers.borrow_mut().pop_front().expect("asked no more often than planned") {
                Key => Ok(Secret::read_from(id.name().as_bytes()).unwrap()),
                Missing => Err(KeyError::not_found(key, "look elsewhere")),
                Away => Err(KeyError::unreachable(key, "no answer")),
                Refused => Err(KeyError::not_allowed(key, "not yours", "ask")),
                Malformed => Err(KeyError::malformed(key, "it is empty", "fill it")),
            }
        }
    }

    /// A clock that only waiting moves on, and that is as random as it is told to be.
    struct Model {
        elapsed: Duration,
        waits: Vec<Duration>,
        random: u32,
    }

    impl Clock for Model {
        fn elapsed(&self) -> Duration {
            self.elapsed
        }
        fn wait(&mut self, time: Duration) {
            self.waits.push(time);
            self.elapsed += time;
        }
        fn random(&mut self) -> u32 {
            self.random
        }
    }

    /// What came of asking keys `a`, `b`... with these answers; whom that asked; and the waits.
    struct Outcome {
        result: Result<String, KeyError>,
        asked: String,
        waits: Vec<Duration>,
    }

    fn run(scripts: &[&[Answer]], patience_seconds: u64, random: u32) -> Outcome {
        let asked = Rc::new(RefCell::new(Vec::new()));
        let source = |(answers, name): (&&[Answer], char)| KeySource {
            reference: format!("file:{name}").parse().unwrap(),
            manager: Box::new(Scripted {
                answers: RefCell::new(answers.iter().copied().collect()),
                asked: Rc::clone(&asked),
            }),
        };
        let sources: Vec<KeySource> = scripts.iter().zip('a'..).map(source).collect();
        let mut clock = Model { elapsed: Duration::ZERO, waits: Vec::new(), random };
        let result = fetch_patiently(&sources, Duration::from_secs(patience_seconds), &mut clock);
        let result = result.map(|(secret, source)| {
            assert_eq!(source.reference().id().name().as_bytes(), secret.expose());
            String::from_utf8(secret.expose().to_vec()).unwrap()
        });
        let asked = asked.borrow().concat();
        Outcome { result, asked, waits: clock.waits }
    }

    #[test]
    fn the_first_key_that_there_is_wins() {
        for (scripts, asked) in [
            (&[&[Key][..], &[]][..], "a"),
            (&[&[Missing], &[Key]], "ab"),
            (&[&[Away], &[Key]], "ab"),
            (&[&[Away], &[Missing], &[Key], &[]], "abc"),
        ] {
            let outcome = run(scripts, 60, 0);
            assert_eq!(outcome.asked, asked);
            assert_eq!(outcome.result.unwrap(), asked[asked.len() - 1..]);
            assert_eq!(outcome.waits, [Duration::ZERO; 0]);
        }
    }

    #[test]
    fn an_answer_that_has_to_be_looked_at_ends_the_search() {
        for answer in [Refused, Malformed] {
            for scripts in
                [&[&[answer][..], &[]][..], &[&[Away], &[answer], &[]], &[&[Missing], &[answer], &[]]]
            {
                let outcome = run(scripts, 60, 0);
                assert!(matches!(
                    outcome.result,
                    Err(KeyError::NotAllowed { .. } | KeyError::Malformed { .. })
                ));
                assert_eq!(outcome.waits, [Duration::ZERO; 0]);
            }
        }
    }

    #[test]
    fn keys_that_are_nowhere_are_not_waited_for() {
        let outcome = run(&[&[Missing], &[Missing]], 60, 0);
        assert_eq!((outcome.asked.as_str(), outcome.waits.len()), ("ab", 0));
        assert!(outcome.result.unwrap_err().to_string().contains("file:a"));
    }

    #[test]
    fn all_are_asked_again_while_one_is_away() {
        let outcome = run(&[&[Missing, Missing, Missing], &[Away, Away, Key]], 60, 0);
        assert_eq!(outcome.result.unwrap(), "b");
        assert_eq!(outcome.asked, "ababab");
        let outcome = run(&[&[Away, Away], &[Missing, Missing]], 1, u32::MAX);
        assert!(matches!(outcome.result, Err(KeyError::Unreachable { .. })));
        let outcome = run(&[&[Missing, Missing], &[Away, Missing]], 60, 0);
        assert!(
            matches!(outcome.result, Err(KeyError::NotFound { .. })),
            "the manager is back, the key is not"
        );
    }

    #[test]
    fn waits_grow_to_a_bound_and_end_with_the_patience() {
        let seconds = |waits: &[Duration]| waits.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
        let outcome = run(&[&[Away; 8]], 60, u32::MAX);
        assert_eq!(seconds(&outcome.waits), [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]);
        assert!(matches!(outcome.result, Err(KeyError::Unreachable { .. })));
        let outcome = run(&[&[Away; 4]], 3, 0);
        assert_eq!(seconds(&outcome.waits), [0.5, 1.0, 1.5]);
        assert_eq!(outcome.asked, "aaaa", "the last attempt is made when the time is over");
        let outcome = run(&[&[Away]], 0, 0);
        assert_eq!((outcome.asked.as_str(), outcome.waits.len()), ("a", 0), "no patience is one attempt");
    }
}
