/* What Cython cannot say: atomics with an explicit order, branch hints, and one-descriptor SCM_RIGHTS messages. */
#ifndef FASTSIDE_NATIVE_H
#define FASTSIDE_NATIVE_H

#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define fs_load_acquire_u64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define fs_load_acquire_u32(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define fs_load_relaxed_u64(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define fs_load_relaxed_u32(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define fs_store_release_u64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define fs_store_release_u32(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define fs_store_relaxed_u64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define fs_store_relaxed_u32(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define fs_add_u32(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define fs_sub_u32(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELAXED)
#define fs_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define fs_clz_u64(v) ((uint32_t)__builtin_clzll(v))
#define fs_ctz_u64(v) ((uint32_t)__builtin_ctzll(v))
#define fs_likely(x) __builtin_expect(!!(x), 1)
#define fs_unlikely(x) __builtin_expect(!!(x), 0)

/* Sends one message with at most one descriptor (fd < 0: none). Returns sendmsg's result. */
static inline ssize_t fs_send_fd(int channel, const void *data, size_t len, int fd)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {(void *)data, len};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fd >= 0) {
        memset(control, 0, sizeof control);
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof(int));
    }
    return sendmsg(channel, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Receives one message; *fd is the descriptor that came with it, or -1. Returns recvmsg's result. */
static inline ssize_t fs_recv_fd(int channel, void *data, size_t len, int *fd)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {data, len};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    *fd = -1;
    ssize_t n = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return n;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(head), sizeof(int));
    return n;
}

#endif
