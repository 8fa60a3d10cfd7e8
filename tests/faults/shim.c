/* Faults of a disk, by number: loaded before libc (LD_PRELOAD), it counts what a process does to the files below one
 * folder, and at a chosen step kills the process or says that the disk is full.
 *
 * FAULT_FOLDER  the folder, absolute; nothing is counted without it
 * FAULT_AT      the step, from 1; 0: none
 * FAULT_DO      "kill" (SIGKILL just before the step is done) or "full" (ENOSPC from that step on)
 * FAULT_TIMES   for "full": of so many steps; without it, until the file FAULT_UNTIL is there
 * FAULT_UNTIL   for "full": a path; while it is not there the disk also says that nothing of it is free
 * FAULT_LOG     a file that gets a line for each step: "<number> <call> <path>"
 * FAULT_FREE    so many bytes are free on every disk, whatever is
 *
 * Read by fault_read(), at the start and whenever the process calls it after changing its environment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], until[PATH_MAX], log_path[PATH_MAX];
static long at, times, free_bytes = -1;
static int fills;
static atomic_long count;

static void take(char *into, const char *name) {
    const char *value = getenv(name);
    snprintf(into, PATH_MAX, "%s", value ? value : "");
}

__attribute__((constructor)) void fault_read(void) {
    const char *what = getenv("FAULT_DO"), *number = getenv("FAULT_AT"), *many = getenv("FAULT_TIMES");
    take(folder, "FAULT_FOLDER");
    take(until, "FAULT_UNTIL");
    take(log_path, "FAULT_LOG");
    at = number ? atol(number) : 0;
    times = many ? atol(many) : LONG_MAX / 2;
    fills = what && !strcmp(what, "full");
    free_bytes = getenv("FAULT_FREE") ? atol(getenv("FAULT_FREE")) : -1;
    count = 0;
}

/* Calls of the shim itself go straight to the kernel. */
static void note(long number, const char *call, const char *path) {
    char line[PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path);
    int file = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file >= 0) {
        syscall(SYS_write, file, line, (size_t)size);
        syscall(SYS_close, file);
    }
}

static int is_full(long number) {
    if (!fills || !at || number < at || number >= at + times) return 0;
    return !until[0] || syscall(SYS_faccessat, AT_FDCWD, until, F_OK) != 0;
}

/* Whether the call has to fail; does not return where the process has to die. `grows` is what a full disk refuses. */
static int step(const char *call, const char *path, int grows) {
    size_t length = strlen(folder);
    if (!length || strncmp(path, folder, length) || (path[length] && path[length] != '/')) return 0;
    int saved = errno;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (log_path[0]) note(number, call, path);
    if (number == at && !fills) syscall(SYS_kill, getpid(), SIGKILL);
    errno = saved;
    if (!grows || !is_full(number)) return 0;
    errno = ENOSPC;
    return 1;
}

static const char *named(int directory, const char *path, char *into) {
    char link[64], base[PATH_MAX];
    if (path[0] == '/') return path;
    if (directory == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return path;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t size = readlink(link, base, sizeof base - 1);
        if (size < 0) return path;
        base[size] = 0;
    }
    snprintf(into, 2 * PATH_MAX, "%s/%s", base, path);
    return into;
}

static int step_at(const char *call, int directory, const char *path, int grows) {
    char whole[2 * PATH_MAX];
    return folder[0] && path && step(call, named(directory, path, whole), grows);
}

static int step_of(const char *call, int file, int grows) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return step(call, path, grows);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if (writes(flags) && step_at("open", AT_FDCWD, path, flags & O_CREAT)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        REAL(name); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if (writes(flags) && step_at("open", directory, path, flags & O_CREAT)) return -1; \
        return real(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        if (strpbrk(mode, "wa+") && step_at("open", AT_FDCWD, path, 1)) return NULL; \
        return real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    return step_of("write", file, 1) ? -1 : real(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int many) {
    REAL(writev);
    return step_of("write", file, 1) ? -1 : real(file, parts, many);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int file, const void *data, size_t size, offset_type offset) { \
        REAL(name); \
        return step_of("write", file, 1) ? -1 : real(file, data, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SENDFILE(name, offset_type) \
    ssize_t name(int to, int from, offset_type *offset, size_t size) { \
        static ssize_t (*real)(int, int, offset_type *, size_t); \
        if (!real) real = (ssize_t(*)(int, int, offset_type *, size_t))dlsym(RTLD_NEXT, #name); \
        return step_of("write", to, 1) ? -1 : real(to, from, offset, size); \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *end, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return step_of("write", to, 1) ? -1 : real(from, start, to, end, size, flags);
}

#define TRUNCATE(name, offset_type) \
    int name(int file, offset_type size) { \
        REAL(name); \
        return step_of("ftruncate", file, size > 0) ? -1 : real(file, size); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int fsync(int file) {
    REAL(fsync);
    return step_of("fsync", file, 1) ? -1 : real(file);
}

int fdatasync(int file) {
    REAL(fdatasync);
    return step_of("fsync", file, 1) ? -1 : real(file);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return step_at("rename", AT_FDCWD, to, 0) ? -1 : real(from, to);
}

int renameat(int old, const char *from, int new, const char *to) {
    REAL(renameat);
    return step_at("rename", new, to, 0) ? -1 : real(old, from, new, to);
}

int renameat2(int old, const char *from, int new, const char *to, unsigned flags) {
    REAL(renameat2);
    return step_at("rename", new, to, 0) ? -1 : real(old, from, new, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return step_at("mkdir", AT_FDCWD, path, 1) ? -1 : real(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode) {
    REAL(mkdirat);
    return step_at("mkdir", directory, path, 1) ? -1 : real(directory, path, mode);
}

int unlink(const char *path) {
    REAL(unlink);
    return step_at("unlink", AT_FDCWD, path, 0) ? -1 : real(path);
}

int unlinkat(int directory, const char *path, int flags) {
    REAL(unlinkat);
    return step_at("unlink", directory, path, 0) ? -1 : real(directory, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    return step_at("rmdir", AT_FDCWD, path, 0) ? -1 : real(path);
}

#define STATVFS(name, kind) \
    int name(const char *path, struct kind *found) { \
        REAL(name); \
        int failed = real(path, found); \
        if (failed) return failed; \
        if (free_bytes >= 0) found->f_bavail = found->f_bfree = (fsblkcnt_t)free_bytes / found->f_frsize; \
        if (until[0] && count >= at && is_full(at)) found->f_bavail = found->f_bfree = 0; \
        return 0; \
    }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)
