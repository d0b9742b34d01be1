/* Faults of disk and clock, for a process that is started with this library before its own (LD_PRELOAD).
 *
 * Of all below TORTURE_ROOT the library keeps beside, in TORTURE_KEPT, what a power cut would leave: `files/KEY` is a
 * file as of its last sync, `names/KEY` a folder's entries as of the folder's last sync. KEY is inode and time of
 * birth, as numbers of inodes are used again. What was never synced is not there. TORTURE_CONTROL is a file that
 * faults are switched in: by how many nanoseconds the wall clock is wrong, and whether the disk is full.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

static const char *root, *kept;

/* A copy: a store writes its title over its environment. */
static const char *setting(const char *name)
{
    const char *value = getenv(name);
    return value ? strdup(value) : NULL;
}

static const volatile int64_t *control;

__attribute__((constructor)) static void begin(void)
{
    const char *path = setting("TORTURE_CONTROL");
    root = setting("TORTURE_ROOT");
    kept = setting("TORTURE_KEPT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, 16, PROT_READ, MAP_SHARED, file, 0);
    control = page == MAP_FAILED ? NULL : page;
    if (file >= 0)
        close(file);
}

/* Write the key of a file into `key` (64 bytes); its type ('d', 'f', or '-' where there is no such file) is returned. */
char torture_key(int folder, const char *name, char *key)
{
    struct statx found;
    int flags = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH;
    if (statx(folder, name, flags, STATX_TYPE | STATX_INO | STATX_BTIME, &found) != 0)
        return '-';
    snprintf(key, 64, "%llu-%lld.%u", (unsigned long long)found.stx_ino, (long long)found.stx_btime.tv_sec,
             found.stx_btime.tv_nsec);
    return S_ISDIR(found.stx_mode) ? 'd' : S_ISREG(found.stx_mode) ? 'f' : '-';
}

static int below_root(const char *path)
{
    size_t length = root ? strlen(root) : 0;
    return length && strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static int watched(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = root ? readlink(link, path, sizeof path - 1) : -1;
    path[length < 0 ? 0 : length] = '\0';
    return below_root(path);
}

static void copy(int from, int to, off_t at)
{
    char block[65536];
    ssize_t got;
    while ((got = pread(from, block, sizeof block, at)) > 0)
        for (ssize_t done = 0, put; done < got; done += put, at += put)
            if ((put = syscall(SYS_pwrite64, to, block + done, got - done, at)) <= 0)
                return;
}

static void keep_file(int fd, const char *key)
{
    char link[64], whole[PATH_MAX], part[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    snprintf(whole, sizeof whole, "%s/files/%s", kept, key);
    snprintf(part, sizeof part, "%s/files/%s.%d", kept, key, getpid());
    int from = open(link, O_RDONLY | O_CLOEXEC), to;
    struct stat now, before;
    if (from < 0)
        return;
    /* Of a file that is only appended to the new end is enough: a log is synced with every answer. */
    int appended = (fcntl(fd, F_GETFL) & O_APPEND) && fstat(from, &now) == 0 && stat(whole, &before) == 0 &&
                   before.st_size <= now.st_size;
    if (appended && (to = open(whole, O_WRONLY | O_CLOEXEC)) >= 0) {
        copy(from, to, before.st_size);
        close(to);
    } else if ((to = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)) >= 0) {
        copy(from, to, 0);
        close(to);
        rename(part, whole);
    }
    close(from);
}

static void keep_names(int fd, const char *key)
{
    char whole[PATH_MAX], part[PATH_MAX], entry[64];
    snprintf(whole, sizeof whole, "%s/names/%s", kept, key);
    snprintf(part, sizeof part, "%s/names/%s.%d", kept, key, getpid());
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = again < 0 ? NULL : fdopendir(again);
    FILE *out = folder ? fopen(part, "we") : NULL;
    struct dirent *each;
    while (out && (each = readdir(folder)))
        if (strcmp(each->d_name, ".") && strcmp(each->d_name, "..")) {
            char type = torture_key(again, each->d_name, entry);
            if (type != '-')
                fprintf(out, "%c %s %s\n", type, entry, each->d_name);
        }
    if (out && fclose(out) == 0)
        rename(part, whole);
    if (folder)
        closedir(folder);
}

/* A new folder comes with what was synced in it: file systems with a journal write their names in order, and stores
 * count on that. */
static void keep_parents(int fd)
{
    char link[64], path[PATH_MAX], key[64], line[PATH_MAX], names[PATH_MAX], known[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return;
    path[length] = '\0';
    for (char *slash; strcmp(path, root) && (slash = strrchr(path, '/')) && slash > path; *slash = '\0') {
        if (torture_key(AT_FDCWD, path, key) != 'd')
            return;
        snprintf(line, sizeof line, "d %s %s\n", key, slash + 1);
        *slash = '\0';
        torture_key(AT_FDCWD, path, key);
        snprintf(names, sizeof names, "%s/names/%s", kept, key);
        FILE *file = fopen(names, "a+e");
        int there = 0;
        while (file && fgets(known, sizeof known, file))
            there |= strcmp(known, line) == 0;
        if (file && !there)
            fputs(line, file);
        if (file)
            fclose(file);
    }
}

static void keep(int fd)
{
    char key[64];
    int before = errno;
    if (kept && watched(fd)) {
        char type = torture_key(fd, "", key);
        if (type == 'd') {
            keep_names(fd, key);
            keep_parents(fd);
        }
        else if (type == 'f')
            keep_file(fd, key);
    }
    errno = before;
}

int fsync(int fd)
{
    keep(fd);
    return NEXT(fsync)(fd);
}

int fdatasync(int fd)
{
    keep(fd);
    return NEXT(fdatasync)(fd);
}

/* What is written by way of memory is synced by its address. */
int msync(void *start, size_t length, int flags)
{
    char line[PATH_MAX + 128], path[PATH_MAX];
    unsigned long long first, end, asked = (uintptr_t)start;
    FILE *maps = kept && (flags & MS_SYNC) ? fopen("/proc/self/maps", "re") : NULL;
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%llx-%llx %*s %*s %*s %*s %[^\n]", &first, &end, path) == 3 && first <= asked && asked < end) {
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd >= 0) {
                keep(fd);
                close(fd);
            }
        }
    if (maps)
        fclose(maps);
    return NEXT(msync)(start, length, flags);
}

/* A file that was cut and appended to has another end than the one that is kept: its rest alone is kept on. */
static void cut(int folder, const char *path, off_t length)
{
    char key[64], whole[PATH_MAX];
    struct stat before;
    if (torture_key(folder, path, key) == 'f') {
        snprintf(whole, sizeof whole, "%s/files/%s", kept, key);
        if (stat(whole, &before) == 0 && before.st_size > length && syscall(SYS_truncate, whole, length) != 0)
            unlink(whole);
    }
}

int ftruncate(int fd, off_t length)
{
    if (kept && watched(fd))
        cut(fd, "", length);
    return NEXT(ftruncate)(fd, length);
}

int truncate(const char *path, off_t length)
{
    char real[PATH_MAX];
    if (kept && realpath(path, real) && below_root(real))
        cut(AT_FDCWD, real, length);
    return NEXT(truncate)(path, length);
}

int truncate64(const char *path, off64_t length) __attribute__((alias("truncate")));

int ftruncate64(int fd, off64_t length) __attribute__((alias("ftruncate")));

/* The disk is full: to the last byte for whoever writes, and for whoever looks at its room. */
static int full(int fd)
{
    if (!control || !control[1] || !watched(fd))
        return 0;
    errno = ENOSPC;
    return 1;
}

ssize_t write(int fd, const void *data, size_t size)
{
    return full(fd) ? -1 : NEXT(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return full(fd) ? -1 : NEXT(writev)(fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    return full(fd) ? -1 : NEXT(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) __attribute__((alias("pwrite")));

int posix_fallocate(int fd, off_t at, off_t size)
{
    return full(fd) ? ENOSPC : NEXT(posix_fallocate)(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size) __attribute__((alias("posix_fallocate")));

int statvfs(const char *path, struct statvfs *found)
{
    int code = NEXT(statvfs)(path, found);
    if (code == 0 && control && control[1] && below_root(path))
        found->f_bavail = found->f_bfree = 0;
    return code;
}

int statvfs64(const char *path, struct statvfs64 *found) __attribute__((alias("statvfs")));

/* The wall clock jumps; what measures spans of time goes on. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    int code = NEXT(clock_gettime)(clock, now);
    if (code == 0 && control && control[0] && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t all = now->tv_sec * 1000000000LL + now->tv_nsec + control[0];
        now->tv_sec = all / 1000000000LL;
        now->tv_nsec = all % 1000000000LL;
    }
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    int code = clock_gettime(CLOCK_REALTIME, &exact);
    (void)zone;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return code;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
