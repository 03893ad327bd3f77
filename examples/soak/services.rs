//! Kafka, PostgreSQL and S3 of this run's own, by `scripts/services`; and the guardian that ends everything with this process.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context as _, bail};

/// The names that `scripts/services` knows them by.
pub const NAMES: [&str; 3] = ["kafka", "postgres", "s3"];

/// Ends when its standard input does, that is with this process, however that ends; and takes the services and its own process group
/// along, in which all nodes are. First goes what is just starting a service again.
const GUARDIAN: &str = r#"
read -r _
trap '' TERM
kill -TERM 0
sleep 0.3
for service in kafka postgres s3; do "$1" kill $service; done >/dev/null 2>&1
kill -KILL 0
"#;

/// The services of a run.
pub struct Services {
    script: PathBuf,
    folder: PathBuf,
    /// What `scripts/services env` prints.
    variables: BTreeMap<String, String>,
    guardian: Child,
    /// The guardian's standard input.
    lifeline: ChildStdin,
}

impl Services {
    /// Starts them in `folder`.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let mut guardian = Command::new("bash");
        guardian.arg("-c").arg(GUARDIAN).arg("soak-guardian").arg(&script).env("OPENWIT_SERVICES_DIR", folder);
        guardian.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut guardian = guardian.spawn().context("starting bash")?;
        let lifeline = guardian.stdin.take().context("the guardian's standard input")?;
        let mut services = Services { script, folder: folder.to_owned(), variables: BTreeMap::new(), guardian, lifeline };
        let started = services
            .command(&["up", "--require", "kafka", "postgres", "s3"])
            .stdout(Stdio::null())
            .status()
            .context("running scripts/services")?;
        anyhow::ensure!(started.success(), "scripts/services up failed; its messages are above");
        services.variables = services.read_variables()?;
        Ok(services)
    }

    fn read_variables(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let text = self.output(&["env"])?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        Ok(lines.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect())
    }

    /// One of the variables that name the services.
    pub fn variable(&self, name: &str) -> anyhow::Result<&str> {
        self.variables.get(name).map(String::as_str).with_context(|| format!("scripts/services env has no {name}"))
    }

    /// The process group of the guardian: what joins it dies with this process.
    pub fn process_group(&self) -> i32 {
        self.guardian.id() as i32
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.script);
        command.args(args).env("OPENWIT_SERVICES_DIR", &self.folder).stdin(Stdio::null());
        command
    }

    fn output(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).output().context("running scripts/services")?;
        if !output.status.success() {
            bail!("scripts/services {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Creates a topic that takes large messages.
    pub fn create_topic(&self, name: &str, partitions: i32) -> anyhow::Result<()> {
        self.output(&["topic", "create", name, &partitions.to_string(), "max.message.bytes=22000000"]).map(|_| ())
    }

    /// Kills a service without warning, stops it with SIGSTOP, or lets it go on: `kill`, `pause`, `resume`.
    pub fn signal(&self, action: &str, service: &str) -> anyhow::Result<()> {
        self.output(&[action, service]).map(|_| ())
    }

    /// Asks a service to stop.
    pub fn stop(&self, service: &str) -> anyhow::Result<()> {
        let pid = self.pid(service).with_context(|| format!("{service} has no pid file"))?;
        // PostgreSQL's SIGTERM waits for its clients to leave; SIGINT ends their sessions.
        let signal = if service == "postgres" { libc::SIGINT } else { libc::SIGTERM };
        crate::node::send_signal(pid, signal)
    }

    /// Starts a service again on its data and ports; the child ends when it is ready.
    pub fn restart(&self, service: &str) -> anyhow::Result<Child> {
        let mut command = self.command(&["restart", service]);
        command.process_group(self.process_group()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("running scripts/services restart")
    }

    /// A service's process id.
    pub fn pid(&self, service: &str) -> Option<u32> {
        let text = fs::read_to_string(self.folder.join(service).join("pid")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }

    /// Stops the services and deletes their data.
    pub fn delete(&self) -> anyhow::Result<()> {
        self.output(&["down"]).map(|_| ())
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // Wakes the guardian, which ends the services and the nodes. It fails only if the guardian was killed.
        let _ = self.lifeline.write_all(b"\n");
        let _ = self.guardian.wait();
    }
}
