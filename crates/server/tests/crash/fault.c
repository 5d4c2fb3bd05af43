/* A disk that fails, for one process: LD_PRELOAD it.
 *
 * FAULT_DIRECTORY: files below it are affected. FAULT_CONTROL: a file whose word says how:
 *   none          not at all
 *   full          writes and growing fail with ENOSPC
 *   broken        syncs fail with EIO
 *   hang          syncs wait until the word is another
 *   forbidden     opening fails with EACCES
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void word(char *out, size_t size) {
    const char *path = getenv("FAULT_CONTROL");
    ssize_t length = 0;
    if (path) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            length = syscall(SYS_read, fd, out, size - 1);
            syscall(SYS_close, fd);
        }
    }
    out[length > 0 ? length : 0] = 0;
}

static int says(const char *what) {
    char text[64];
    word(text, sizeof text);
    return strcmp(text, what) == 0;
}

static int is_below(const char *path) {
    const char *directory = getenv("FAULT_DIRECTORY");
    return directory && strncmp(path, directory, strlen(directory)) == 0;
}

static int affects(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static void wait_a_little(void) {
    struct timespec time = {0, 10 * 1000 * 1000};
    nanosleep(&time, NULL);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define REFUSE(code) do { errno = (code); return -1; } while (0)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (fd > 2 && says("full") && affects(fd)) REFUSE(ENOSPC);
    return real(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (fd > 2 && says("full") && affects(fd)) REFUSE(ENOSPC);
    return real(fd, parts, count);
}

int ftruncate64(int fd, off64_t length) {
    REAL(int, ftruncate64, int, off64_t);
    struct stat now;
    if (says("full") && affects(fd) && fstat(fd, &now) == 0 && length > now.st_size)
        REFUSE(ENOSPC);
    return real(fd, length);
}

static int sync_fails(int fd) {
    if (says("broken") && affects(fd)) return EIO;
    while (says("hang") && affects(fd)) wait_a_little();
    return 0;
}

int fsync(int fd) {
    REAL(int, fsync, int);
    int error = sync_fails(fd);
    if (error) REFUSE(error);
    return real(fd);
}

int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    int error = sync_fails(fd);
    if (error) REFUSE(error);
    return real(fd);
}

int open64(const char *path, int flags, ...) {
    REAL(int, open64, const char *, int, ...);
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    if (is_below(path) && says("forbidden")) REFUSE(EACCES);
    return real(path, flags, mode);
}
