//! What one run measures: server, stream, link and time. Parses the options that describe a link.

use super::model::{Outage, Phase, Shape};
use super::relay::{Block, Protocol};
use super::server::Kind;
use super::stream::Stream;
use crate::Fallible;

const NS_PER_MS: f64 = 1e6;

/// Time after the first picture whose figures are reported apart, in seconds.
pub(crate) const START_SECONDS: u64 = 3;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) server: Kind,
    pub(crate) stream: Stream,
    pub(crate) link: LinkOptions,
    /// Measured time after the first [`START_SECONDS`].
    pub(crate) seconds: u64,
    /// True for the server's own page, false for a plain player that is the same for all servers.
    pub(crate) own_page: bool,
    /// Load viewers that watch the same server over loopback.
    pub(crate) beside: usize,
    pub(crate) seed: u64,
}

/// The link as options of the command line, so that records can repeat it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LinkOptions {
    words: Vec<(String, String)>,
    phases: Vec<Phase>,
    queue_bytes: Option<usize>,
    round_trip_ns: u64,
    jitter_ns: u64,
    loss: f64,
    loss_run: f64,
    outages: Vec<Outage>,
    block_udp_ns: Option<u64>,
    block_tcp_ns: Option<u64>,
    /// Time since the first picture at which the viewer gets another address, in ns.
    pub(crate) move_ns: Option<u64>,
}

impl LinkOptions {
    /// Parses options as on the command line, separated by white space.
    pub(crate) fn parse(text: &str) -> Fallible<LinkOptions> {
        let mut options = LinkOptions::default();
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words.chunks(2) {
            let [name, value] = pair else { return Err(format!("{text:?}: a value is missing").into()) };
            if !options.set(name.trim_start_matches("--"), value)? {
                return Err(format!("unknown option {name}").into());
            }
        }
        Ok(options)
    }

    /// Sets an option. Returns false if no option of a link has this name.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Fallible<bool> {
        match name {
            "rate" => self.phases = phases(value)?,
            "queue" => self.queue_bytes = Some(number(value)? as usize),
            "rtt" => self.round_trip_ns = time_ns(value)?,
            "jitter" => self.jitter_ns = time_ns(value)?,
            "loss" => self.loss = share(value)?,
            "loss-run" => self.loss_run = value.parse()?,
            "outage" => self.outages = outages(value)?,
            "block-udp" => self.block_udp_ns = Some(time_ns(value)?),
            "block-tcp" => self.block_tcp_ns = Some(time_ns(value)?),
            "move" => self.move_ns = Some(time_ns(value)?),
            _ => return Ok(false),
        }
        self.words.retain(|(known, _)| known != name);
        self.words.push((name.to_owned(), value.to_owned()));
        Ok(true)
    }

    /// Returns the options as text that [`Self::parse`] accepts.
    pub(crate) fn text(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|(name, value)| format!("--{name} {value}")).collect();
        words.join(" ")
    }

    /// Returns the shape of each direction. The round trip is shared equally.
    pub(crate) fn shape(&self) -> Shape {
        let unlimited = vec![Phase { from_ns: 0, bits_per_s: None }];
        Shape {
            phases: if self.phases.is_empty() { unlimited } else { self.phases.clone() },
            queue_bytes: self.queue_bytes.unwrap_or(usize::MAX / 2),
            delay_ns: self.round_trip_ns / 2,
            jitter_ns: self.jitter_ns,
            loss: self.loss,
            loss_run: self.loss_run,
            outages: self.outages.clone(),
        }
    }

    /// Returns the protocols that the link blocks. `page` is the HTTP port, which stays open.
    pub(crate) fn blocks(&self, page: u16) -> Vec<Block> {
        let block = |protocol, from_ns: Option<u64>| from_ns.map(|from_ns| Block { protocol, from_ns });
        let udp = block(Protocol::Udp, self.block_udp_ns);
        let tcp = block(Protocol::TcpExcept(page), self.block_tcp_ns);
        [udp, tcp].into_iter().flatten().collect()
    }

    /// Returns the time of the last change of the link, in ns since the first picture. Returns `None` if the link does
    /// not change.
    pub(crate) fn last_change_ns(&self) -> Option<u64> {
        let phases = self.phases.iter().map(|phase| phase.from_ns);
        let outages = self.outages.iter().map(|outage| outage.to_ns);
        let others = [self.block_udp_ns, self.block_tcp_ns, self.move_ns];
        phases.chain(outages).chain(others.into_iter().flatten()).filter(|ns| *ns > 0).max()
    }
}

/// Parses a number with an optional suffix k or M (1000 and 1000000).
fn number(text: &str) -> Fallible<f64> {
    let (digits, factor) = match text.strip_suffix(['k', 'M']) {
        Some(digits) if text.ends_with('k') => (digits, 1e3),
        Some(digits) => (digits, 1e6),
        None => (text, 1.0),
    };
    let value: f64 = digits.parse().map_err(|_| format!("{text:?} is not a number like 15M, 60k or 600"))?;
    if value.is_finite() && value >= 0.0 {
        Ok(value * factor)
    } else {
        Err(format!("{text:?} is negative").into())
    }
}

/// Parses a time such as `20ms` or `2s`.
fn time_ns(text: &str) -> Fallible<u64> {
    let (digits, factor) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => (digits, NS_PER_MS),
        (None, Some(digits)) => (digits, 1e3 * NS_PER_MS),
        (None, None) => return Err(format!("{text:?} is not a time like 20ms or 2s").into()),
    };
    Ok((number(digits)? * factor) as u64)
}

/// Parses a share such as `5%`.
fn share(text: &str) -> Fallible<f64> {
    let percent: f64 = text.strip_suffix('%').unwrap_or(text).parse()?;
    if (0.0..100.0).contains(&percent) {
        Ok(percent / 100.0)
    } else {
        Err(format!("{text:?} is not below 100%").into())
    }
}

/// Parses rates such as `20M` or `20M,10s:2M,20s:20M`: the first one, then changes at times after the first picture.
fn phases(text: &str) -> Fallible<Vec<Phase>> {
    let one = |(index, part): (usize, &str)| -> Fallible<Phase> {
        let (from_ns, rate) = match part.split_once(':') {
            Some((at, rate)) => (time_ns(at)?, rate),
            None if index == 0 => (0, part),
            None => return Err(format!("{part:?}: a later rate needs a time, such as 10s:2M").into()),
        };
        let bits_per_s = if rate == "max" { None } else { Some(number(rate)? as u64) };
        Ok(Phase { from_ns, bits_per_s })
    };
    let phases = text.split(',').enumerate().map(one).collect::<Fallible<Vec<_>>>()?;
    if phases.is_sorted_by_key(|phase| phase.from_ns) {
        Ok(phases)
    } else {
        Err("rates are not in the order of time".into())
    }
}

/// Parses outages such as `10s:2s`, a time after the first picture and a duration, separated by commas.
fn outages(text: &str) -> Fallible<Vec<Outage>> {
    let one = |part: &str| -> Fallible<Outage> {
        let (at, lasts) = part.split_once(':').ok_or_else(|| format!("{part:?} is not like 10s:2s"))?;
        let from_ns = time_ns(at)?;
        Ok(Outage { from_ns, to_ns: from_ns + time_ns(lasts)? })
    };
    text.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_describe_a_link_and_can_be_written_again() {
        let text =
            "--rate 20M,10s:2M,20s:20M --queue 200k --rtt 20ms --loss 5% --outage 10s:2s --block-udp 500ms";
        let options = LinkOptions::parse(text).unwrap();
        assert_eq!(options.text(), text);
        let shape = options.shape();
        let rates: Vec<_> = shape.phases.iter().map(|p| (p.from_ns / 1_000_000_000, p.bits_per_s)).collect();
        assert_eq!(rates, [(0, Some(20_000_000)), (10, Some(2_000_000)), (20, Some(20_000_000))]);
        assert_eq!((shape.queue_bytes, shape.delay_ns, shape.loss), (200_000, 10_000_000, 0.05));
        assert_eq!(shape.outages, [Outage { from_ns: 10_000_000_000, to_ns: 12_000_000_000 }]);
        assert_eq!(options.blocks(80), [Block { protocol: Protocol::Udp, from_ns: 500_000_000 }]);
        assert_eq!(options.last_change_ns(), Some(20_000_000_000));
        assert_eq!(LinkOptions::parse("").unwrap().last_change_ns(), None);
    }

    #[test]
    fn wrong_options_are_rejected() {
        for text in [
            "--rate",
            "--rate fast",
            "--rate 1M,2M",
            "--rate 1M,5s:2M,3s:1M",
            "--rtt 20",
            "--loss 100%",
            "--loss -1%",
            "--queue -5",
            "--outage 5s",
            "--speed 3",
        ] {
            assert!(LinkOptions::parse(text).is_err(), "{text}");
        }
    }
}
