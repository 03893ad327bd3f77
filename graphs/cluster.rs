//! Several processes as one timely cluster: the graphs from a source on of all of them are one dataflow, with one dedup window.
//!
//! ```text
//!   process 0 ---- data, control ---- process 1        of each pair the one with the higher number connects to the other
//!        \                              /              data: what timely exchanges
//!   data, control               data, control          control: is it there, is it to stop, has it failed, has it ended
//!           \                      /
//!                  process 2
//! ```
//!
//! None can come back alone: with the end of one the others end too, and are started anew together. What is exchanged is neither encrypted
//! nor authenticated: docs/scaling.md.

pub(crate) mod joining;
pub(crate) mod links;
pub(crate) mod watched;

use std::fmt;
use std::path::Path;

/// The stage of faults of the cluster.
pub const NAME: &str = "cluster";

/// Which process of which cluster this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    process: usize,
    addresses: Vec<String>,
}

/// Another process, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub number: usize,
    pub address: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of the cluster at {}", self.number, self.address)
    }
}

/// What is wrong with a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Config {
    /// Process number `process` of those at `addresses`.
    pub fn new(process: usize, addresses: Vec<String>) -> Result<Self, Invalid> {
        if process >= addresses.len() {
            let processes = addresses.len();
            return Err(Invalid(format!(
                "--process {process}: processes are numbered from 0, so of {processes} the last one is {}",
                processes.saturating_sub(1)
            )));
        }
        Ok(Config { process, addresses })
    }

    /// The addresses of a cluster of `processes` on this machine alone.
    pub fn local_addresses(processes: usize) -> Vec<String> {
        (0..processes).map(|process| format!("localhost:{}", 2101 + process)).collect()
    }

    /// The addresses in the text of a hostfile: one `host:port` a line; empty lines and those that begin with `#` do not count.
    pub fn parse_hostfile(path: &Path, text: &str, processes: usize) -> Result<Vec<String>, Invalid> {
        let (mut found, mut problems): (Vec<(usize, String)>, Vec<String>) = (Vec::new(), Vec::new());
        for (line, address) in (1..).zip(text.lines().map(str::trim)) {
            if address.is_empty() || address.starts_with('#') {
                continue;
            }
            let former = found.iter().find(|(_, known)| known == address);
            let problem = match (check_address(address), former) {
                (Err(problem), _) => Some(problem),
                (Ok(()), Some((former, _))) => {
                    Some(format!("is in line {former} already: every process has an address of its own"))
                }
                (Ok(()), None) => None,
            };
            problems.extend(problem.map(|problem| format!("{}:{line}: \"{address}\" {problem}", path.display())));
            found.push((line, address.to_owned()));
        }
        if found.len() != processes {
            let (path, found) = (path.display(), found.len());
            problems.push(format!("{path}: has {found} addresses, and --processes is {processes}: it takes one line for each"));
        }
        if !problems.is_empty() {
            return Err(Invalid(problems.join("\n")));
        }
        Ok(found.into_iter().map(|(_, address)| address).collect())
    }

    /// This process's number.
    pub fn process(&self) -> usize {
        self.process
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.addresses.len()
    }

    /// Their addresses.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    pub(crate) fn own_address(&self) -> &str {
        &self.addresses[self.process]
    }

    pub(crate) fn peer(&self, number: usize) -> Peer {
        Peer { number, address: self.addresses[number].clone() }
    }

    /// The numbers of the others.
    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.processes()).filter(|number| *number != self.process)
    }
}

fn check_address(address: &str) -> Result<(), String> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("is not host:port, like 10.0.0.7:2101".into());
    };
    let is_ipv6 = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(char::is_whitespace) || (host.contains(':') && !is_ipv6) {
        return Err("is not host:port, like 10.0.0.7:2101 or [fd00::7]:2101".into());
    }
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(format!("has port \"{port}\": it takes one from 1 to 65535"));
    }
    if ["0.0.0.0", "[::]", "[::0]", "[0:0:0:0:0:0:0:0]"].contains(&host) {
        return Err("is every interface of a machine: name its address in the private network of the cluster".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, processes: usize) -> Result<Vec<String>, String> {
        Config::parse_hostfile(Path::new("hosts"), text, processes).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn a_hostfile_is_checked_line_by_line() {
        let text = "# the cluster\n10.0.0.1:2101\n\n [fd00::2]:2101 \nnode-2.example:2101\n";
        let found = parsed(text, 3).unwrap();
        assert_eq!(found, ["10.0.0.1:2101", "[fd00::2]:2101", "node-2.example:2101"]);
        for (text, processes, problem) in [
            (text, 2, "hosts: has 3 addresses, and --processes is 2: it takes one line for each"),
            ("", 2, "hosts: has 0 addresses"),
            ("a:1\nb\n", 2, "hosts:2: \"b\" is not host:port"),
            ("a:1\n:7\n", 2, "hosts:2: \":7\" is not host:port"),
            ("a:1\na b:7\n", 2, "hosts:2: \"a b:7\" is not host:port"),
            ("a:1\nfd00::1:7\n", 2, "hosts:2: \"fd00::1:7\" is not host:port"),
            ("a:1\nb:0\n", 2, "hosts:2: \"b:0\" has port \"0\""),
            ("a:1\nb:70000\n", 2, "hosts:2: \"b:70000\" has port \"70000\""),
            ("a:1\nb:\n", 2, "hosts:2: \"b:\" has port \"\""),
            ("0.0.0.0:1\nb:1\n", 2, "hosts:1: \"0.0.0.0:1\" is every interface of a machine"),
            ("a:1\n\n[::]:1\n", 2, "hosts:3: \"[::]:1\" is every interface of a machine"),
            ("a:1\n#\na:1\n", 2, "hosts:3: \"a:1\" is in line 1 already"),
        ] {
            let found = parsed(text, processes).unwrap_err();
            assert!(found.starts_with(problem), "{found}");
        }
        // All at once.
        let told = parsed("a\n0.0.0.0:1\nb:1\n", 2).unwrap_err();
        assert_eq!(told.lines().map(|line| &line[..7]).collect::<Vec<_>>(), ["hosts:1", "hosts:2", "hosts: "], "{told}");
    }

    #[test]
    fn a_process_is_one_of_the_cluster() {
        let two = || vec!["a:1".to_owned(), "b:1".to_owned()];
        assert_eq!(Config::new(1, two()).unwrap().others().collect::<Vec<_>>(), [0]);
        let refused = Config::new(2, two()).unwrap_err().to_string();
        assert_eq!(refused, "--process 2: processes are numbered from 0, so of 2 the last one is 1");
    }
}
