//! Finding VMs on the datastores below the mount, also when one of them doesn't answer.
//!
//! Nothing is remembered: a VM may move at any moment. Each datastore is asked on blocking threads
//! of its own, a few at most, and given up on after a while: a file operation on a datastore whose
//! server is gone waits until it is back, and must hold up neither the others nor the runtime.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::config::{self, ConfigError, VmConfig};
use super::error::VmError;

/// How long a datastore has for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Blocking threads that may wait for one datastore.
const THREADS_PER_DATASTORE: usize = 4;

/// A directory with a `vm.toml`.
#[derive(Clone, Debug)]
pub struct Home {
    /// The datastore.
    pub datastore: String,
    /// The directory's name on it; mostly the VM's.
    pub directory: String,
    /// The directory's full path.
    pub path: PathBuf,
    /// What its `vm.toml` says.
    pub config: Result<VmConfig, ConfigError>,
}

impl Home {
    /// `ds1/vm42`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.datastore, self.directory)
    }

    /// The VM's name; of a directory with a bad `vm.toml`, the directory's.
    pub fn name(&self) -> &str {
        self.config.as_ref().map_or(&self.directory, |c| &c.name)
    }

    /// Its configuration, or why it is unusable.
    pub fn config(&self) -> Result<&VmConfig, VmError> {
        self.config.as_ref().map_err(|e| VmError::Config {
            file: format!("{}/{}", self.label(), config::FILE_NAME),
            source: e.clone(),
        })
    }

    fn read(datastore: &str, directory: &str, path: PathBuf) -> Option<Self> {
        let text = match fs::read_to_string(path.join(config::FILE_NAME)) {
            Ok(text) => Ok(text),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return None;
            }
            Err(e) => Err(ConfigError { place: "the file".into(), problem: e.to_string(), hint: None }),
        };
        let config = text.and_then(|text| VmConfig::parse(&text));
        Some(Self { datastore: datastore.into(), directory: directory.into(), path, config })
    }
}

/// What the datastores said.
#[derive(Debug, Default)]
pub struct Scan {
    /// The VMs' directories, by datastore and directory.
    pub homes: Vec<Home>,
    /// Datastores that did not answer.
    pub silent: Vec<String>,
}

/// What can be told of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// It is there.
    Is {
        /// Its size in bytes.
        size: u64,
        /// Bytes that it takes on its datastore.
        allocated: u64,
    },
    /// It isn't there, or isn't a file.
    Missing,
    /// Its datastore doesn't answer.
    Silent,
}

/// The datastores below a mount.
pub struct Catalog {
    mount: PathBuf,
    threads: Mutex<HashMap<String, Arc<Semaphore>>>,
    patience: Duration,
}

impl Catalog {
    /// Of the host's `mount`.
    pub fn new(mount: PathBuf) -> Self {
        Self { mount, threads: Mutex::default(), patience: PATIENCE }
    }

    /// The mount.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The datastores' names, in order.
    pub async fn datastores(&self) -> Result<Vec<String>, VmError> {
        let mount = self.mount.clone();
        let list = self.on_datastore("", move || visible_entries(&mount)).await;
        let what = format!("list the datastores in {}", self.mount.display());
        match list {
            Some(names) => names.map_err(VmError::io(what)),
            None => Err(VmError::io(what)(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Run file operations on a datastore (the mount itself is `""`). None when it doesn't answer;
    /// the operations may still happen then.
    pub async fn on_datastore<T, F>(&self, datastore: &str, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let threads = self
            .threads
            .lock()
            .entry(datastore.to_string())
            .or_insert_with(|| Arc::new(Semaphore::new(THREADS_PER_DATASTORE)))
            .clone();
        let answer = async {
            let permit = threads.acquire_owned().await.ok()?;
            // The permit goes along: it is free again when the thread is, not when we give up.
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                work()
            })
            .await
            .ok()
        };
        timeout(self.patience, answer).await.ok().flatten()
    }

    /// All VMs.
    pub async fn scan(&self) -> Result<Scan, VmError> {
        self.gather(|mount, datastore| {
            let root = mount.join(datastore);
            let mut homes = Vec::new();
            for directory in visible_entries(&root).unwrap_or_default() {
                homes.extend(Home::read(datastore, &directory, root.join(&directory)));
            }
            homes
        })
        .await
    }

    /// The directories that say they are VM `name` (several while somebody copies one).
    pub async fn find(&self, name: &str) -> Result<Vec<Home>, VmError> {
        // A directory is mostly named after its VM: ask for that one before reading all others.
        let wanted = name.to_string();
        let near = self
            .gather(move |mount, datastore| {
                Home::read(datastore, &wanted, mount.join(datastore).join(&wanted)).into_iter().collect()
            })
            .await?;
        let homes = of_name(near.homes, name);
        if !homes.is_empty() {
            return Ok(homes);
        }
        let mut silent = Vec::new();
        // A VM that moves while the datastores are read, one after the other, may be missed once.
        for _ in 0..2 {
            let all = self.scan().await?;
            let homes = of_name(all.homes, name);
            if !homes.is_empty() {
                return Ok(homes);
            }
            silent = all.silent;
        }
        Err(VmError::NotFound { name: name.into(), silent })
    }

    /// States of files, given with the datastore that each is on.
    pub async fn file_states(&self, files: &[(String, PathBuf)]) -> Vec<FileState> {
        let mut by_datastore: HashMap<&str, Vec<(usize, PathBuf)>> = HashMap::new();
        for (i, (datastore, path)) in files.iter().enumerate() {
            by_datastore.entry(datastore).or_default().push((i, path.clone()));
        }
        let answers = join_all(by_datastore.into_iter().map(|(datastore, paths)| {
            self.on_datastore(datastore, move || {
                paths.into_iter().map(|(i, path)| (i, file_state(&path))).collect::<Vec<_>>()
            })
        }))
        .await;
        let mut states = vec![FileState::Silent; files.len()];
        for (i, state) in answers.into_iter().flatten().flatten() {
            states[i] = state;
        }
        states
    }

    async fn gather<F>(&self, read: F) -> Result<Scan, VmError>
    where
        F: Fn(&Path, &str) -> Vec<Home> + Clone + Send + 'static,
    {
        let datastores = self.datastores().await?;
        let answers = join_all(datastores.iter().map(|datastore| {
            let (read, mount, name) = (read.clone(), self.mount.clone(), datastore.clone());
            self.on_datastore(datastore, move || read(&mount, &name))
        }))
        .await;
        let mut scan = Scan::default();
        for (datastore, answer) in datastores.into_iter().zip(answers) {
            match answer {
                Some(homes) => scan.homes.extend(homes),
                None => scan.silent.push(datastore),
            }
        }
        Ok(scan)
    }
}

/// A directory whose `vm.toml` can't be read counts as the VM of its own name: better its error
/// than "no such VM".
fn of_name(homes: Vec<Home>, name: &str) -> Vec<Home> {
    homes.into_iter().filter(|home| home.name() == name).collect()
}

fn file_state(path: &Path) -> FileState {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => FileState::Is { size: meta.len(), allocated: meta.blocks() * 512 },
        _ => FileState::Missing,
    }
}

/// Names of a directory's entries that are not hidden, in order. Others than UTF-8 can't be VMs.
fn visible_entries(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab {
        root: tempfile::TempDir,
        catalog: Catalog,
    }

    impl Lab {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for ds in ["ds1", "ds2", ".hidden"] {
                fs::create_dir(root.path().join(ds)).unwrap();
            }
            let catalog = Catalog::new(root.path().into());
            Self { root, catalog }
        }

        fn vm(&self, place: &str, toml: &str) {
            let dir = self.root.path().join(place);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("vm.toml"), toml).unwrap();
        }

        async fn places(&self, name: &str) -> Vec<String> {
            self.catalog.find(name).await.unwrap().iter().map(Home::label).collect()
        }
    }

    fn toml(name: &str) -> String {
        format!("name = \"{name}\"\nmemory = \"64MiB\"\n")
    }

    #[tokio::test]
    async fn a_vm_is_found_by_the_name_in_its_file() {
        let lab = Lab::new();
        lab.vm("ds1/a", &toml("a"));
        lab.vm("ds2/somewhere", &toml("b"));
        lab.vm("ds2/c", &toml("not-c"));
        lab.vm("ds1/.creating", &toml("hidden"));
        lab.vm(".hidden/x", &toml("x"));
        fs::write(lab.root.path().join("ds1/file"), "").unwrap();
        assert_eq!(lab.places("a").await, ["ds1/a"]);
        assert_eq!(lab.places("b").await, ["ds2/somewhere"]);
        assert_eq!(lab.places("not-c").await, ["ds2/c"]);
        for name in ["c", "somewhere", "hidden", "x", "file"] {
            assert!(matches!(lab.catalog.find(name).await, Err(VmError::NotFound { .. })), "{name}");
        }
        assert_eq!(lab.catalog.scan().await.unwrap().homes.len(), 3);
    }

    #[tokio::test]
    async fn two_of_one_name_are_both_reported() {
        let lab = Lab::new();
        lab.vm("ds1/a", &toml("a"));
        lab.vm("ds2/a", &toml("a"));
        assert_eq!(lab.places("a").await, ["ds1/a", "ds2/a"]);
    }

    #[tokio::test]
    async fn a_bad_file_is_reported_under_its_directory_name() {
        let lab = Lab::new();
        lab.vm("ds1/a", "name = \"a\"\nmemroy = \"1GiB\"\n");
        let homes = lab.catalog.find("a").await.unwrap();
        let error = homes[0].config().unwrap_err();
        assert_eq!(error.to_string(), "ds1/a/vm.toml: line 2: unknown key `memroy`");
        assert_eq!(error.hint().unwrap(), "did you mean `memory`?");
    }

    #[tokio::test]
    async fn a_datastore_that_does_not_answer_is_named_and_does_not_pile_up_threads() {
        let mut lab = Lab::new();
        lab.catalog.patience = Duration::from_millis(50);
        lab.vm("ds1/a", &toml("a"));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..THREADS_PER_DATASTORE + 3 {
            let blocked = blocked.clone();
            let answer = lab.catalog.on_datastore("ds2", move || blocked.lock().recv().is_ok()).await;
            assert_eq!(answer, None);
        }
        assert_eq!(lab.catalog.threads.lock()["ds2"].available_permits(), 0);
        assert_eq!(lab.places("a").await, ["ds1/a"]);
        let error = lab.catalog.find("zzz").await.unwrap_err();
        assert!(error.to_string().ends_with("(ds2 did not answer)"), "{error}");
        drop(release);
        lab.catalog.patience = PATIENCE;
        assert_eq!(lab.catalog.scan().await.unwrap().silent, Vec::<String>::new(), "it answers again");
    }

    #[tokio::test]
    async fn states_come_in_the_order_asked_for() {
        let lab = Lab::new();
        fs::write(lab.root.path().join("ds1/x"), "12345").unwrap();
        let sparse = fs::File::create(lab.root.path().join("ds2/y")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let path = |p: &str| (p[..3].to_string(), lab.root.path().join(p));
        let states =
            lab.catalog.file_states(&[path("ds2/y"), path("ds1/none"), path("ds1/x"), path("ds1/")]).await;
        assert_eq!(states[0], FileState::Is { size: 1 << 30, allocated: 0 });
        assert_eq!(states[1], FileState::Missing);
        assert!(matches!(states[2], FileState::Is { size: 5, .. }));
        assert_eq!(states[3], FileState::Missing);
    }
}
